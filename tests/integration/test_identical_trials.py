"""Trials of one sweep that differ in their seed alone cost the same, wherever in the sweep they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from scipy.stats import kendalltau

from ablations.sweep_display import NoDisplay
from ablations.trial_config import RecordLabels
from ablations.tune.ray_sweep import run_sweep
from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from lgd.results.record import FILE, Record, load
from tests.helpers import quick_experiment

# Wide enough that what a training allocates shows beside what the process holds already.
WIDE: dict[str, Any] = {"detector.channels": 64, "data.shapes_side": 128, "data.min_sizes": [128], "data.max_size": 128}
LARGER: dict[str, Any] = {**WIDE, "detector.channels": 128, "schedule.batch": 4}

IDENTICAL = 6

MEMORY = 1.02
"""Largest over smallest peak memory of identical trials."""

TREND, GROWTH = 0.01, 1.2
"""Times have a trend where Kendall's test over the trials has a p below TREND, and the last two trials' mean is more
than GROWTH times that of the first two: either alone happens on a machine that does other work, too."""


class _CpuTimes(NoDisplay):
    """CPU seconds of the sweep's one worker process at each trial's end: wall-clock time depends on its neighbours."""

    def __init__(self) -> None:
        self.at_end: dict[str, float] = {}

    def ended(self, name: str, record: Record) -> None:
        workers = [x for x in psutil.Process().children(recursive=True) if x.name().startswith("ray::")]
        self.at_end[name] = sum(sum(x.cpu_times()[:2]) for x in workers)


def has_trend(values: list[float]) -> bool:
    statistic = kendalltau(range(len(values)), values)
    return bool(statistic.pvalue < TREND and statistic.statistic > 0) and sum(values[-2:]) > GROWTH * sum(values[:2])


def test_a_trend_is_found() -> None:
    assert has_trend([1.0, 1.1, 1.2, 1.3, 1.4, 1.5])
    assert not has_trend([1.0, 1.5, 0.9, 1.6, 1.1, 1.2])
    assert not has_trend([1.0, 1.01, 1.02, 1.03, 1.04, 1.05])
    assert not has_trend([1.5, 1.4, 1.3, 1.2, 1.1, 1.0])


@pytest.mark.slow
def test_identical_trials_report_the_same_memory_and_take_the_same_time(tmp_path: Path, ray_session: None) -> None:
    """One reused worker trains them, and in between others that need more memory and free it."""
    trials = []
    for i in range(IDENTICAL):
        if i % 2 == 0:
            larger = quick_experiment(**LARGER, seed=i)
            trials.append(Trial(f"larger {i}", larger, tmp_path / "trials" / f"larger-{i}"))
        identical = quick_experiment(**WIDE, **{"method.name": "baseline", "seed": i})
        trials.append(Trial(f"identical {i}", identical, tmp_path / "trials" / f"identical-{i}"))
    times = _CpuTimes()
    run_sweep(trials, RecordLabels("components", "nano"), tmp_path, Resources(1, 0, 1), times)
    records = {x.name: load(x.directory / FILE) for x in trials}
    assert {x.status for x in records.values()} == {"finished"}
    host = [x.peak_memory_mib["host"] for name, x in records.items() if name.startswith("identical")]
    assert len(host) == IDENTICAL
    assert max(host) <= MEMORY * min(host), host
    names = [x.name for x in trials]
    took = [
        times.at_end[name] - times.at_end[names[i - 1]] for i, name in enumerate(names) if name.startswith("identical")
    ]
    assert not has_trend(took), took
