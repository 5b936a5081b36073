"""A sweep notices that its Ray has ended: it ends itself, or gives up where it waits for Ray."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ablations.limits import Budget
from ablations.tune.ray_watch import HEAD, RAYLET, RayWatch
from tests.helpers import wait_until

QUICK = {"grace": 0.05, "away": 0.3, "period": 0.02}


@pytest.fixture
def processes() -> Iterator[dict[str, psutil.Process]]:
    """Stand-ins for Ray's head and raylet."""
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)]
    yield dict(zip((HEAD, RAYLET), (psutil.Process(x.pid) for x in started), strict=True))
    for process in started:
        process.kill()
        process.wait()


class _GivenUp(threading.Event):
    why = ""

    def __call__(self, why: str) -> None:
        self.why = why
        self.set()


def test_without_its_raylet_a_sweep_ends_by_itself(tmp_path: Path, processes: dict[str, psutil.Process]) -> None:
    given_up = _GivenUp()
    with RayWatch(tmp_path / "stop", given_up, processes=processes, address="", **QUICK) as watch:
        assert not given_up.wait(0.2)
        assert watch.lost == ""
        processes[RAYLET].kill()
        wait_until(lambda: watch.lost == "Ray's raylet ended")
        assert not given_up.wait(0.2)
    assert not (tmp_path / "stop").exists()


def test_without_the_head_the_trials_are_stopped_and_the_sweep_given_up(
    tmp_path: Path, processes: dict[str, psutil.Process]
) -> None:
    given_up = _GivenUp()
    with RayWatch(tmp_path / "stop", given_up, processes=processes, address="", **QUICK):
        processes[HEAD].kill()
        assert given_up.wait(10)
    assert given_up.why == "Ray's gcs_server ended"
    assert (tmp_path / "stop").exists()


def test_a_sweep_that_ends_in_time_is_not_given_up(tmp_path: Path, processes: dict[str, psutil.Process]) -> None:
    given_up = _GivenUp()
    with RayWatch(tmp_path / "stop", given_up, processes=processes, address="", **{**QUICK, "grace": 30.0}) as watch:
        processes[HEAD].kill()
        wait_until(lambda: watch.lost != "")
    assert not given_up.is_set()


def test_a_head_elsewhere_may_be_away_for_a_moment(tmp_path: Path) -> None:
    given_up = _GivenUp()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        watch = RayWatch(tmp_path / "stop", given_up, processes={}, address=address, **QUICK)
        with watch:
            assert not given_up.wait(0.5)
            server.close()
            assert given_up.wait(10)
    assert given_up.why == f"Ray's head at {address} does not answer"


def test_a_budget_has_other_reasons() -> None:
    budget = Budget(max_gpu_hours=1.0)
    assert budget.exceeded(10.0) == ""
    budget.other_reason = lambda: "Ray's raylet ended"
    assert budget.exceeded(10.0) == "Ray's raylet ended"
    assert budget.exceeded(3600.0) == "--max-gpu-hours 1 are used"
