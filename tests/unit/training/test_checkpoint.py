"""A training that is interrupted goes on as if nothing had happened, and its meter knows what was lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lgd.errors import InputError
from lgd.results.cost_meter import read_heartbeat
from lgd.results.record import Record, load
from lgd.training import checkpoint
from lgd.training import run as training
from lgd.training.state import TrainingState
from tests.conftest import once_per_run
from tests.helpers import quick_experiment, unsaved, wait_until

IMAGES = 6
"""Of an evaluation."""

# A frozen backbone, accumulation, a distillation that begins, evaluations: what a resumed run must find again.
CHANGES: dict[str, Any] = {
    "schedule.steps": 12,
    "data.shapes_val": IMAGES,
    "schedule.frozen": 0.25,
    "schedule.distill_from": 0.75,
    "evaluation.every": 4,
    "evaluation.teacher": True,
    "checkpoint.every": 2,
}


class _Stop:
    """Says stop after step ``at`` of an attempt. evaluations: how many come before that, after each image of which it
    is asked too.
    """

    def __init__(self, at: int, evaluations: int = 0) -> None:
        self.left = at + evaluations * IMAGES

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Record:
    """The training of CHANGES without an interruption."""
    return once_per_run(tmp_path_factory, "whole", lambda root: training.run(quick_experiment(**CHANGES), root))


@pytest.fixture
def stopped(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A directory of the training of CHANGES, stopped after step 3."""

    def make(root: Path) -> Path:
        with pytest.raises(training.Stopped):
            training.run(quick_experiment(**CHANGES), root, should_stop=_Stop(3))
        return root

    return shutil.copytree(once_per_run(tmp_path_factory, "stopped", make), tmp_path / "stopped")


def _lines(directory: Path) -> list[dict[str, Any]]:
    """What metrics.json says of the losses."""
    lines = [json.loads(line) for line in (directory / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "loss" in k or k in ("iteration", "lr")} for line in lines]


def _same(ours: Record, theirs: Record) -> None:
    assert ours.losses == theirs.losses
    assert ours.evaluations == theirs.evaluations
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.status, ours.steps) == ("finished", theirs.steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster_rcnn"])
def test_a_stopped_training_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Stopped twice: while the backbone is frozen, and between two checkpoints of its own and two lines of the log."""
    extra: dict[str, Any] = {"detector.name": name, "detector.fc_dim": 16, "schedule.accumulate": 2}
    extra |= {"schedule.steps": 20, "evaluation.every": 10}
    if name == "faster_rcnn":
        # It draws its samples: the random state counts.
        extra |= {"method.context": False, "method.detach_appearance": True}
    experiment = quick_experiment(**{**CHANGES, **extra})
    whole = training.run(experiment, tmp_path / "whole")
    assert not (tmp_path / "whole" / "checkpoints").exists()
    parts, lost = tmp_path / "parts", 0.0
    for steps, at in ((1, 1), (7, 6)):
        with pytest.raises(training.Stopped) as caught:
            training.run(experiment, parts, should_stop=_Stop(at))
        assert caught.value.step == steps
        assert not (parts / "record.json").exists()
        # Writing the checkpoint is in no checkpoint; nothing else is lost.
        lost += unsaved(parts)
        torch.rand(3)
    record = training.run(experiment, parts)
    _same(record, whole)
    assert _lines(parts) == _lines(tmp_path / "whole")
    ours, theirs = (torch.load(x / "student.pth", weights_only=True)["model"] for x in (parts, tmp_path / "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    assert record.attempts == 3
    assert whole.attempts == 1
    assert record.device_seconds["lost"] == pytest.approx(lost, abs=0.01)
    assert not (parts / "checkpoints").exists()


def test_only_the_latest_checkpoints_are_kept(tmp_path: Path) -> None:
    experiment = quick_experiment(**{**CHANGES, "checkpoint.keep": 3})
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=_Stop(9, evaluations=2))
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == [f"step-{step:08}.pth" for step in (6, 8, 9)]


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    tmp_path: Path, whole: Record, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = quick_experiment(**{**CHANGES, "checkpoint.keep": 3})
    with pytest.raises(training.Stopped):
        training.run(experiment, tmp_path, should_stop=_Stop(9, evaluations=2))
    newest = tmp_path / "checkpoints" / "step-00000009.pth"
    content = bytearray(newest.read_bytes())
    # In the middle lie weights, which torch.load would take as they are.
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    newest.write_bytes(content)
    before = torch.load(newest, weights_only=True)
    assert before["step"] == 9
    # The one before is cut off, and the one before that whole.
    second = tmp_path / "checkpoints" / "step-00000008.pth"
    second.write_bytes(second.read_bytes()[:1000])
    _same(training.run(experiment, tmp_path), whole)
    for name in ("step-00000009.pth", "step-00000008.pth"):
        assert f"{name} cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule.lr": 0.01}, r"schedule.lr is 0.05 there and 0.01 here"),
        ({"method.adapter": False}, r"method.adapter is True there and False here"),
        ({"data.shapes_train": 13}, r"data.shapes_train is 12 there and 13 here"),
    ],
)
def test_another_experiments_checkpoint_is_refused(changes: dict[str, Any], words: str, stopped: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        training.run(quick_experiment(**{**CHANGES, **changes}), stopped)
    assert "\n" not in str(caught.value)
    assert (stopped / "checkpoints").exists()


def test_a_checkpoint_of_other_code_is_refused(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lgd.training.build.build_optimizer", lambda model, _: torch.optim.SGD(model.parameters(), 0.05)
    )
    with pytest.raises(InputError, match="commit .* there and .* here, the same settings build another model"):
        training.run(quick_experiment(**CHANGES), stopped)


@pytest.mark.slow
def test_what_changes_nothing_may_change(stopped: Path, whole: Record) -> None:
    changed = quick_experiment(**{**CHANGES, "data.workers": 1, "checkpoint.every": 5})
    _same(training.run(changed, stopped), whole)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["contiguous", "channels_last"])
def test_another_memory_format_goes_on_alike(before: str, tmp_path: Path, whole: Record) -> None:
    """The momentum is a checkpoint's, and lies in memory as the parameters do."""
    after = {"contiguous": "channels_last", "channels_last": "contiguous"}[before]
    with pytest.raises(training.Stopped):
        training.run(quick_experiment(**CHANGES, memory_format=before), tmp_path, should_stop=_Stop(6, evaluations=1))
    gone_on = training.run(quick_experiment(**CHANGES, memory_format=after), tmp_path)
    for name, curve in whole.losses.items():
        # The formats round differently, and how much of that there is after a few steps depends on the processor. A
        # momentum that lay otherwise would be off by twice as much.
        assert [v for _, v in gone_on.losses[name]] == pytest.approx([v for _, v in curve], rel=0.05), name


RUN = """
import sys
from pathlib import Path
from lgd.training import run as training
from lgd.training.state import TrainingState
from lgd.config.experiment import parse
import json
from lgd.results import cost_meter
cost_meter.HEARTBEAT_PERIOD = 0.05
training.run(parse(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_killed_training_goes_on_and_its_lost_work_is_counted(tmp_path: Path) -> None:
    """SIGKILL between two checkpoints: the steps since the last are done again, and paid for twice."""
    experiment = quick_experiment(
        **{"schedule.steps": 200, "checkpoint.every": 100, "method.name": "baseline", "schedule.batch": 4}
    )
    directory = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", RUN, experiment.model_dump_json(), str(directory)])
    try:
        wait_until(lambda: process.poll() is not None or unsaved(directory) > 0)
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.kill()
        process.wait()
    lost, spent = unsaved(directory), read_heartbeat(directory).device_seconds
    assert lost > 0
    record = training.run(experiment, directory)
    assert record.attempts == 2
    assert record.device_seconds["lost"] == pytest.approx(lost, abs=0.01)
    assert sum(record.device_seconds.values()) > spent
    assert load(directory / "record.json") == record


def test_a_kill_while_a_checkpoint_is_read_loses_no_earlier_cost(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What earlier attempts cost stays on disk until the meter of this one holds it, and its own set-up beside it."""
    spent = read_heartbeat(stopped)
    assert spent.device_seconds > 0

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingState, "restore", killed)
    with pytest.raises(KeyboardInterrupt):
        training.run(quick_experiment(**CHANGES), stopped)
    now = read_heartbeat(stopped)
    assert now.device_seconds > spent.device_seconds
    assert now.attempts == spent.attempts + 1


def test_random_states_come_back() -> None:
    import random

    import numpy as np

    state = checkpoint.random_state()
    drawn = random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist()  # noqa: NPY002
    checkpoint.set_random_state(state)
    assert drawn == (random.random(), np.random.rand(3).tolist(), torch.rand(3).tolist())  # noqa: NPY002


def test_a_new_checkpoint_replaces_later_ones_that_cannot_be_read(tmp_path: Path) -> None:
    """They would take its place otherwise, and a training that is killed again would lose everything again."""
    experiment = quick_experiment(**{"checkpoint.keep": 2})
    for step in (50, 100):
        damaged = checkpoint.save(tmp_path, step, experiment, "f", "c", {})
        damaged.write_bytes(damaged.read_bytes()[:-50])
    assert checkpoint.latest(tmp_path, experiment, "f") is None
    for step, kept in ((20, [20]), (40, [20, 40]), (60, [40, 60])):
        checkpoint.save(tmp_path, step, experiment, "f", "c", {})
        names = sorted(x.name for x in (tmp_path / checkpoint.DIRECTORY).iterdir())
        assert names == [f"step-{x:08}.pth" for x in kept]
    assert checkpoint.latest(tmp_path, experiment, "f") == (60, {})
    assert checkpoint.last_step(tmp_path) == 60
