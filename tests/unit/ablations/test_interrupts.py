"""What a command on a sweep says when a signal ends it."""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablations import sweep
from ablations.limits import Budget
from ablations.plan import trials_of
from ablations.tune.ray_sweep import Outcome
from lgd.distributed.resources import Resources
from lgd.files import DiskFullError
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec

SPEC = SweepSpec(grid="components", preset="nano", overrides=(), arms=("baseline",), seeds=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_answered_with_the_command_that_goes_on(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> int:
        os.kill(os.getpid(), number)
        threading.Event().wait(60)
        return 0

    monkeypatch.setattr(sweep, "_run", interrupted)
    arguments = (SPEC, tmp_path, sweep.RunOptions(), Budget(), Console(width=400))
    # Before there is a sweep to go on with, the command itself says that it was interrupted.
    with pytest.raises(KeyboardInterrupt):
        sweep.run(*arguments)
    (tmp_path / SWEEP_FILE).touch()
    before = signal.getsignal(number)
    assert sweep.run(*arguments) == 130
    assert signal.getsignal(number) == before
    assert capsys.readouterr().out == f"interrupted; go on with: {sweep.resume_command(tmp_path, SPEC)}\n"


def test_sigterm_after_the_last_look_at_the_budget_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune no longer asks then: without a reason a further round of seeds would begin."""

    def run_sweep(*_: Any, budget_exceeded: Callable[[float], str], **__: Any) -> Outcome:
        assert budget_exceeded(0.0) == ""
        os.kill(os.getpid(), signal.SIGTERM)
        return Outcome(spent=3.0)

    monkeypatch.setattr("ablations.tune.ray_sweep.run_sweep", run_sweep)
    monkeypatch.setattr(sweep, "_learn", lambda *_: None)
    planned = trials_of(SPEC, tmp_path)
    resources = Resources(cpus=1, gpus=0.0, max_concurrent=1)
    found = sweep.train(planned, planned.trials, resources, None, Budget(), 0.0, Console(width=400))
    assert found == ("SIGTERM came", 3.0)


def test_a_full_disk_is_answered_with_the_command_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full: list[OSError] = [
        OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "table.md")),
        DiskFullError(errno.ENOSPC, "No space left on device (0.0 MiB free)", str(tmp_path / "table.md")),
    ]

    def run(error: OSError) -> int:
        def fail(*_: Any) -> int:
            raise error

        monkeypatch.setattr(sweep, "_run", fail)
        return sweep.run(SPEC, tmp_path, sweep.RunOptions(), Budget(), Console(width=400))

    # Before there is a sweep, it is an error like another.
    for error in full:
        with pytest.raises(DiskFullError, match=r"No space left.*no trial was begun.*give the same command again"):
            run(error)
    (tmp_path / SWEEP_FILE).touch()
    message = rf"{tmp_path}/table.md cannot be written: No space left on device \(.* MiB free\); go on with: "
    for error in full:
        assert run(error) == 2
        assert re.fullmatch(f"{message}{re.escape(sweep.resume_command(tmp_path, SPEC))}\n", capsys.readouterr().out)
    with pytest.raises(PermissionError):
        run(PermissionError(errno.EACCES, "Permission denied", "table.md"))
