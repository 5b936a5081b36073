"""Trainings that follow each other in one process, as trials of a sweep do in a reused worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd.config.presets import TINY
from lgd.training.run import run
from tests.helpers import quick_experiment

SMALL: dict[str, Any] = {
    "schedule.steps": 6,
    "schedule.warmup_steps": 2,
    "data.shapes_train": 24,
    "data.shapes_val": 6,
    "threads": 1,
    "method.name": "baseline",
}


@pytest.mark.slow
def test_the_memory_of_identical_trainings_does_not_grow_with_their_order(tmp_path: Path, record_property: Any) -> None:
    """With others in between, which need more and whose memory is not given back by itself."""
    run(quick_experiment(), tmp_path / "first")
    host, seconds = [], []
    for i in range(5):
        record = run(TINY.override({**SMALL, "seed": i}), tmp_path / f"{i}")
        host.append(record.peak_memory_mib["host"])
        seconds.append(record.seconds["training"])
        run(TINY.override({**SMALL, "method.name": "lgd", "detector.channels": 128}), tmp_path / f"other {i}")
    # A time is not asserted: other work on this machine changes it.
    record_property("training seconds by order", seconds)
    record_property("host MiB by order", host)
    assert max(host) <= 1.02 * min(host), host
