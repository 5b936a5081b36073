"""A sweep that gets no room in its cluster ends when it is to."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ablations.sweep_display import NoDisplay
from ablations.trial_config import RecordLabels
from ablations.tune.ray_sweep import Outcome, run_sweep
from lgd.config.grids import Trial
from lgd.distributed.resources import Resources
from tests.helpers import quick_experiment

HELD_S = 60.0
"""How long other work holds the cluster's cores."""


@pytest.mark.slow
def test_trials_that_wait_are_never_begun_once_the_sweep_is_to_end(tmp_path: Path, ray_session: None) -> None:
    import ray

    released = threading.Event()

    @ray.remote(num_cpus=2)
    class OtherWork:
        def ready(self) -> bool:
            return True

    other = OtherWork.remote()  # type: ignore[attr-defined]
    ray.get(other.ready.remote())

    def release() -> None:
        released.set()
        ray.kill(other)

    timer = threading.Timer(HELD_S, release)
    timer.start()
    try:
        trials = [Trial(f"arm {i}", quick_experiment(seed=i), tmp_path / "trials" / f"arm-{i}-seed{i}") for i in (1, 2)]
        begun = time.monotonic()
        outcome = run_sweep(
            trials, RecordLabels("components", "nano"), tmp_path, Resources(1, 0, 2), NoDisplay(),
            budget_exceeded=lambda _: "it was told to" if time.monotonic() - begun > 3 else "",
        )  # fmt: skip
        assert not released.is_set(), "it waited until there was room"
    finally:
        timer.cancel()
        if not released.is_set():
            release()
    assert outcome == Outcome(set(), "it was told to", 0.0)
    assert not list(tmp_path.glob("trials/*/metrics.json"))
    assert not list(tmp_path.glob("trials/*/record.json"))
