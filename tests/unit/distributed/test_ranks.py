"""Several workers that share a batch train what one worker trains alone. Real processes over Gloo, without Ray."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lgd.config.experiment import Experiment, parse
from lgd.distributed import ranks
from lgd.results.record import Record, load
from lgd.training.teacher import train_with_teacher
from tests.helpers import quick_experiment

WORKERS = 2

# Norms of each image alone: those of a batch see another batch on each worker.
ALIKE: dict[str, Any] = {
    "detector.backbone.norm": "GN",
    "detector.backbone.width": 32,
    "method.teacher.backbone.norm": "GN",
    "method.teacher.backbone.width": 32,
    "method.from_step": 2,
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


def _work(rank: int, port: int, experiment: dict[str, Any], directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=WORKERS)
    try:
        train_with_teacher(parse(experiment), Path(directory))
        (Path(directory) / f"done-{rank}").touch()
    finally:
        dist.destroy_process_group()


def _on_two(experiment: Experiment, directory: Path) -> Record:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(  # type: ignore[attr-defined]
        _work, (port, experiment.model_dump(mode="json"), str(directory)), nprocs=WORKERS
    )
    return load(directory / "record.json")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"detector__name": "retinanet"},
        {"detector__name": "retinanet", "method__name": "fgfi"},
        {"detector__name": "retinanet", "method__adapter": False, "schedule__accumulate": 2},
        {"detector__name": "fcos"},
    ],
    ids=lambda x: " ".join(map(str, x.values())),
)
def test_two_workers_follow_one(changes: dict[str, Any], tmp_path: Path) -> None:
    experiment = _experiment(**changes)
    one = train_with_teacher(experiment, tmp_path / "one", teachers=tmp_path / "teachers")
    two = _on_two(experiment, tmp_path / "two")
    assert (two.status, two.devices, one.devices) == ("finished", 2, 1)
    assert two.losses.keys() == one.losses.keys()
    for name, curve in one.losses.items():
        ours, theirs = [v for _, v in two.losses[name]], [v for _, v in curve]
        assert ours[0] == pytest.approx(theirs[0], rel=FIRST), name
        assert ours == pytest.approx(theirs, rel=LATER), name
    assert two.student is not None
    assert two.data == one.data
    assert two.device_seconds["training"] == pytest.approx(2 * two.seconds["training"], rel=1e-3)
    assert (tmp_path / "two" / "done-1").exists()


@pytest.mark.slow
def test_a_loss_that_diverges_ends_every_worker(tmp_path: Path) -> None:
    record = _on_two(_experiment(schedule__lr=1e12, schedule__clip=0, schedule__steps=40), tmp_path)
    assert record.status == "diverged"
    assert (tmp_path / "done-0").exists()
    assert (tmp_path / "done-1").exists()


def test_one_worker_needs_no_wrapping() -> None:
    model = torch.nn.Linear(2, 2)
    assert ranks.wrap_ddp(model) is model
    assert ranks.broadcast("x") == "x"
    assert ranks.all_gather(3) == [3]
