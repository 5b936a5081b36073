"""Several workers that share a batch train what one worker trains alone. Real processes over Gloo, without Ray."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lgd.config.experiment import Experiment, parse
from lgd.distributed import ranks, ray_train
from lgd.distributed.workers import Workers
from lgd.errors import InputError
from lgd.results.cost_meter import HEARTBEAT_FILE
from lgd.results.record import Record, load
from lgd.storage import outputs
from lgd.storage.store import StorageError
from lgd.training.progress import Stopped
from lgd.training.teacher import _lock, train_with_teacher
from lgd.training.worker import Job, train_as_worker
from tests.conftest import once_per_run
from tests.helpers import quick_experiment

WORKERS = 2

# Norms of each image alone: those of a batch see another batch on each worker.
ALIKE: dict[str, Any] = {
    "detector.backbone.norm": "GN",
    "detector.backbone.width": 32,
    "schedule.batch": 4,
    "schedule.steps": 8,
    "schedule.lr": 0.005,
    # Frozen at first, taught later: the phases freeze other parameters under the workers' feet.
    "schedule.frozen": 0.4,
    "schedule.distill_from": 0.6,
}

FIRST, LATER = 1e-5, 2e-3
"""How far a loss may lie from one worker's, as a part of it: by rounding at first, later by what that became."""


def _experiment(**changes: Any) -> Experiment:
    return quick_experiment(**{**ALIKE, **{k.replace("__", "."): v for k, v in changes.items()}})


def _work(rank: int, port: int, experiments: list[dict[str, Any]], directories: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    try:
        for experiment, directory in zip(experiments, directories, strict=True):
            train_with_teacher(parse(experiment), Path(directory))
            (Path(directory) / f"done-{rank}").touch()
        _on_two_disks(rank, Path(directories[0]).parent)
        _where_a_store_does_not_answer(rank, Path(directories[0]).parent)
    finally:
        dist.destroy_process_group()


TAUGHT: dict[str, Any] = {
    "detector__name": "retinanet",
    "method__teacher__backbone__norm": "GN",
    "method__teacher__backbone__width": 32,
    # The teacher detects nothing yet.
    "method__teacher__gate": False,
}
DISKS = {**TAUGHT, "method__name": "fgd"}


def _on_two_disks(rank: int, root: Path) -> None:
    """A training in a store, stopped, and gone on with by two workers of whom none has its checkpoint on its disk."""
    url = f"file://{root}/store"
    job = Job(_experiment(**DISKS), f"{url}/run", f"{url}/teachers", Workers(WORKERS))
    with pytest.MonkeyPatch.context() as patch:
        for attempt, kind in enumerate((Stopped, Record)):
            # The main worker moves to the disk of the other one, which moves to a new one.
            patch.setenv("LGD_CACHE", str(root / f"disk-{rank + attempt}"))
            # In its first step, after the teacher's training.
            begun = outputs.output_path(job.directory) / HEARTBEAT_FILE
            patch.setattr(ray_train, "asked_to_stop", begun.exists if attempt == 0 else lambda: False)
            found = train_as_worker(job, 0)
            assert isinstance(found, kind), found
            dist.barrier()
        undisturbed = replace(job, directory=str(root / "undisturbed"), teachers=str(root / "own teachers"))
        assert isinstance(train_as_worker(undisturbed, 0), Record)


def _where_a_store_does_not_answer(rank: int, root: Path) -> None:
    """What one worker cannot fetch or publish ends both, as what it is."""

    def fail(of: int) -> None:
        if rank == of:
            raise StorageError(f"store: no answer to worker {of}")

    for of in range(WORKERS):
        with pytest.raises(StorageError, match=rf"^store: no answer to worker {of}$"):
            ranks.run_on_all_ranks(partial(fail, of))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(StorageError, match="no answer to worker 0"):
        # The main worker asks for a teacher's lease.
        patch.setattr(outputs, "held", lambda *_, **__: fail(0))
        with _lock(root / "teacher of nobody"):
            pass


def _on_two(experiments: list[Experiment], directories: list[Path]) -> None:
    """Train them in one pair of processes: starting these takes longer than a training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    described = [x.model_dump(mode="json") for x in experiments]
    mp.spawn(  # type: ignore[attr-defined]
        _work, (port, described, [str(x) for x in directories]), nprocs=WORKERS
    )


TRAININGS: dict[str, dict[str, Any]] = {
    "fgfi": {**TAUGHT, "method__name": "fgfi", "method__from_step": 2},
    "fgd": {**TAUGHT, "method__name": "fgd"},
    "dml": {"detector__name": "retinanet", "method__name": "dml"},
    "accumulation": {"detector__name": "retinanet", "method__adapter": False, "schedule__accumulate": 2},
}
RANDOM: dict[str, dict[str, Any]] = {
    "mgd": {**TAUGHT, "method__name": "mgd"},
    "labelenc": {"detector__name": "retinanet", "method__name": "labelenc"},
}
"""Methods that draw numbers in a step, each worker its own."""
DIVERGING = {"schedule__lr": 1e12, "schedule__clip": 0, "schedule__steps": 40}


@pytest.fixture(scope="module")
def on_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a directory of each training."""

    def make(root: Path) -> Path:
        changes = {**TRAININGS, **RANDOM, "diverging": DIVERGING}
        _on_two([_experiment(**x) for x in changes.values()], [root / name for name in changes])
        return root

    return once_per_run(tmp_path_factory, "on_two", make)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_two_workers_follow_one(name: str, on_two: Path, tmp_path: Path) -> None:
    # From the same teacher: another one, by rounding, would be another training.
    one = train_with_teacher(_experiment(**TRAININGS[name]), tmp_path / "one", teachers=on_two / "teachers")
    two = load(on_two / name / "record.json")
    assert (two.status, two.devices, one.devices) == ("finished", 2, 1)
    assert two.losses.keys() == one.losses.keys()
    for loss, curve in one.losses.items():
        ours, theirs = [v for _, v in two.losses[loss]], [v for _, v in curve]
        assert ours[0] == pytest.approx(theirs[0], rel=FIRST), loss
        assert ours == pytest.approx(theirs, rel=LATER), loss
    assert two.student is not None
    assert two.data == one.data
    assert two.device_seconds["training"] == pytest.approx(2 * two.seconds["training"], rel=1e-3)
    assert (on_two / name / "done-1").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_methods_that_draw_numbers_train_on_two_workers(name: str, on_two: Path) -> None:
    record = load(on_two / name / "record.json")
    assert (record.status, record.devices, record.steps) == ("finished", 2, ALIKE["schedule.steps"])
    assert (on_two / name / "done-1").exists()


@pytest.mark.slow
def test_workers_that_share_no_disk_go_on_from_what_was_published(on_two: Path) -> None:
    record, undisturbed = load(on_two / "store" / "run" / "record.json"), load(on_two / "undisturbed" / "record.json")
    assert (record.status, record.devices, record.attempts, undisturbed.attempts) == ("finished", 2, 2, 1)
    assert record.losses == undisturbed.losses
    assert record.student == undisturbed.student
    assert record.pretraining is not None
    assert undisturbed.pretraining is not None
    assert record.pretraining.AP == undisturbed.pretraining.AP
    there = {x.relative_to(on_two / "store").as_posix() for x in (on_two / "store").rglob("*") if x.is_file()}
    (teacher,) = {x.split("/")[1] for x in there if x.startswith("teachers/")}
    assert {"run/record.json", "run/student.pth", f"teachers/{teacher}/student.pth"} <= there
    assert [x for x in there if "checkpoints/" in x or x.endswith(HEARTBEAT_FILE)] == []
    # The weights of a teacher that another disk's worker trained.
    assert list((on_two / "disk-2" / "outputs").glob(f"*/teachers/{teacher}/student.pth"))


@pytest.mark.slow
def test_a_loss_that_diverges_ends_every_worker(on_two: Path) -> None:
    assert load(on_two / "diverging" / "record.json").status == "diverged"
    assert (on_two / "diverging" / "done-0").exists()
    assert (on_two / "diverging" / "done-1").exists()


def test_an_error_is_what_it_was_on_one_worker() -> None:
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(StorageError, match="^store: no answer$"):
        ranks.run_on_all_ranks(lambda: fail(StorageError("store: no answer")))
    with pytest.raises(InputError, match="^no such file$") as wrong:
        ranks.run_on_all_ranks(lambda: fail(InputError("no such file")), first_only=True)
    assert not isinstance(wrong.value, StorageError)


def test_one_worker_needs_no_wrapping() -> None:
    model = torch.nn.Linear(2, 2)
    assert ranks.wrap_ddp(model) is model
    assert ranks.broadcast("x") == "x"
    assert ranks.all_gather(3) == [3]
