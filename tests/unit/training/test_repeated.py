"""Trainings that follow each other in one process, as trials of a sweep do in a reused worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lgd.training.run import run
from tests.helpers import quick_experiment

# Wide enough that what a training allocates shows beside what the process holds already.
WIDE: dict[str, Any] = {"detector.channels": 64, "data.shapes_side": 128, "data.min_sizes": [128], "data.max_size": 128}


@pytest.mark.slow
def test_the_memory_of_identical_trainings_does_not_grow_with_their_order(tmp_path: Path, record_property: Any) -> None:
    """With others before and in between, which need more memory and free it.

    The very first training of a process has about 2% less: some libraries are loaded in its course.
    """
    host, seconds = [], []
    for i in range(4):
        run(quick_experiment(**{**WIDE, "detector.channels": 128, "schedule.batch": 4}), tmp_path / f"other {i}")
        record = run(quick_experiment(**WIDE, **{"method.name": "baseline", "seed": i}), tmp_path / f"{i}")
        host.append(record.peak_memory_mib["host"])
        seconds.append(record.seconds["training"])
    # Times are not asserted: other work on this machine changes them.
    record_property("training seconds by order", seconds)
    record_property("host MiB by order", host)
    assert max(host) <= 1.02 * min(host), host
