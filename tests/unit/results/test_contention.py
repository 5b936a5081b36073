"""How busy a machine was with other work."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

from lgd.results.contention import CpuUsage, contention


def test_usage_adds_up_over_attempts() -> None:
    times = [(10.0, 100.0, 5.0), (14.0, 106.0, 8.0), (20.0, 118.0, 11.0), (0.0, 0.0, 0.0), (5.0, 9.0, 4.0)]
    readings = iter({"seconds": s, "machine": m, "own": o} for s, m, o in times)
    first = CpuUsage(lambda: next(readings))
    with first.measure():
        saved = first.state()
    assert saved == {"seconds": 4, "machine": 6, "own": 3}
    assert first.state() == {"seconds": 10, "machine": 18, "own": 6}
    second = CpuUsage(lambda: next(readings))
    second.restore(saved)
    with second.measure():
        pass
    assert second.state() == {"seconds": 9, "machine": 15, "own": 7}


def test_other_workers_of_the_training_are_not_other_work() -> None:
    here = [("a", {"seconds": 10.0, "machine": 25.0, "own": own}) for own in (10.0, 5.0)]
    found = contention(here, [1.0] * 3)
    assert found is not None
    assert (found.own_cores, found.other_cores, found.step_spread) == (1.5, 1.0, None)
    assert found.load == pytest.approx(2.5 / found.cores)
    busier = ("b", {"seconds": 10.0, "machine": 40.0, "own": 10.0})
    found = contention([*here, busier], [1.0, 1.0, 2.0, 2.0])
    assert found is not None
    assert (found.own_cores, found.other_cores) == (1.0, 3.0)
    assert found.step_spread == pytest.approx(1 / 1.5, abs=1e-3)
    assert contention([("a", {"seconds": 0.0, "machine": 0.0, "own": 0.0})], []) is None


SPIN = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"


def test_a_child_is_not_other_work() -> None:
    usage = CpuUsage()
    with usage.measure():
        child = subprocess.Popen([sys.executable, "-c", SPIN])
        time.sleep(2)
        running = usage.state()["own"]
        child.kill()
        child.wait()
    # Counted while it runs, and still when it has ended (but for the rounding of a difference of large numbers).
    assert 0.2 < running <= usage.state()["own"] + 1e-6


def test_a_process_of_somebody_else_is_other_work() -> None:
    start = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {SPIN!r}], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid)
"""
    usage = CpuUsage()
    with usage.measure():
        # Whoever started it has ended: it is nobody's child here.
        done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
        other = psutil.Process(int(done.stdout))
        time.sleep(2)
        took = sum(other.cpu_times()[:2])
        other.kill()
    state = usage.state()
    assert took > 0.2
    assert state["machine"] - state["own"] >= 0.8 * took
