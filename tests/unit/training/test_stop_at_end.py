"""A stop that is asked for in the last step or in the final evaluation leaves a checkpoint, and loses no step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lgd.results.record import Record
from lgd.training import checkpoint
from lgd.training.progress import EVALUATIONS_FILE
from lgd.training.run import Stopped, run
from tests.helpers import quick_experiment

STEPS, IMAGES = 6, 6
# Checkpoints at step 50 and later alone: what is saved here is saved because of the stop.
EXPERIMENT = quick_experiment(**{"schedule.steps": STEPS, "data.shapes_val": IMAGES, "evaluation.teacher": True})


class _StopAt:
    """Says stop when asked for the ``at``-th time: after each step, then after each image of the final evaluation."""

    def __init__(self, at: int) -> None:
        self.at, self.asked = at, 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.asked == self.at


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, int, list[Any]]:
    """Record and log of the training without a stop, and how often it asked."""
    directory = tmp_path_factory.mktemp("whole")
    never = _StopAt(0)
    return run(EXPERIMENT, directory, should_stop=never), never.asked, _log(directory)


def _log(directory: Path) -> list[Any]:
    lines = map(json.loads, (directory / "metrics.json").read_text().splitlines())
    return [(x["iteration"], x["total_loss"]) for x in lines if "total_loss" in x]


@pytest.mark.parametrize("at", [STEPS, STEPS + 1, STEPS + IMAGES - 1])
def test_nothing_is_lost(at: int, whole: tuple[Record, int, list[Any]], tmp_path: Path) -> None:
    """Stopped after the last step, at the first image of the evaluation of student and teacher, and later in it."""
    expected, asked, log = whole
    assert asked == STEPS + IMAGES
    with pytest.raises(Stopped) as stopped:
        run(EXPERIMENT, tmp_path, should_stop=_StopAt(at))
    assert stopped.value.step == STEPS
    assert checkpoint.last_step(tmp_path) == STEPS
    # Once more, now with nothing left but the evaluation: its checkpoint stays as it is.
    saved = next((tmp_path / checkpoint.DIRECTORY).iterdir())
    before = saved.stat().st_mtime_ns
    with pytest.raises(Stopped):
        run(EXPERIMENT, tmp_path, should_stop=_StopAt(1))
    assert saved.stat().st_mtime_ns == before

    record = run(EXPERIMENT, tmp_path)
    assert record.attempts == 3
    assert (record.losses, record.evaluations) == (expected.losses, expected.evaluations)
    assert record.student == expected.student
    assert record.steps == STEPS
    assert _log(tmp_path) == log
    assert len((tmp_path / EVALUATIONS_FILE).read_text().splitlines()) == 1
    assert checkpoint.last_step(tmp_path) is None
