"""Seconds by phase."""

from __future__ import annotations

import numpy as np
import pytest

from lgd.meter import Meter, peak_memory_mib, reset_peak_memory


def test_an_inner_phase_pauses_the_outer_one() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    with meter.phase("setup"):
        now[0] += 2
        with meter.phase("training"):
            now[0] += 10
            with meter.phase("evaluation"):
                now[0] += 3
            now[0] += 5
        now[0] += 1
    now[0] += 100
    assert meter.seconds == {"setup": 3, "training": 15, "evaluation": 3, "checkpoint": 0, "lost": 0}


def test_a_phase_ends_with_an_error_too() -> None:
    now = [0.0]
    meter = Meter(clock=lambda: now[0])
    with pytest.raises(ValueError, match="boom"), meter.phase("training"):
        now[0] += 4
        raise ValueError("boom")
    now[0] += 4
    with meter.phase("setup"):
        now[0] += 1
    assert meter.seconds == {"setup": 1, "training": 4, "evaluation": 0, "checkpoint": 0, "lost": 0}


def test_peak_memory_sees_an_allocation_that_is_gone() -> None:
    reset_peak_memory()
    before = peak_memory_mib()["host"]
    block = np.ones(200 * 2**17)
    del block
    assert peak_memory_mib()["host"] - before > 150
