"""What a command on a sweep says when a signal ends it."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ablations import sweep
from ablations.limits import Budget
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
