"""What is told of a trial whose worker is gone, and that goes on with another one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from ablations.display import SweepDisplay
from ablations.trial_config import RecordLabels
from ablations.tune.ray_sweep import Outcome, SweepCallback
from lgd.config.grids import Trial
from lgd.results.record import FILE
from tests.helpers import quick_experiment


@pytest.mark.parametrize(
    ("error", "checkpoint", "told"),
    [
        ("killed", True, "its worker died; it goes on from its checkpoint after step 5"),
        ("killed", False, "its worker died; it begins again"),
        (
            "Task was killed due to the node running low on memory.",
            True,
            "Ray ended its worker since memory ran low; it goes on from its checkpoint after step 5",
        ),
    ],
)
def test_a_restart_is_told_in_a_line(
    error: str, checkpoint: bool, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trial = Trial("LGD", quick_experiment(), tmp_path / "trials" / "lgd-seed0")
    (trial.directory / "checkpoints").mkdir(parents=True)
    if checkpoint:
        (trial.directory / "checkpoints" / "step-00000005.pth").touch()
    display = SweepDisplay([trial], total=1, finished=0, max_concurrent=1, console=Console(width=400))
    callback = SweepCallback(RecordLabels("components", "nano"), tmp_path, display, lambda _: "", Outcome())
    callback.expect([trial])
    tries = SimpleNamespace(num_failures=1)
    described = {"trial": json.dumps({"name": trial.name})}
    # As Tune writes it.
    errors = tmp_path / "error.txt"
    errors.write_text(f"Failure # 1 (occurred at noon)\n{error}\n")
    of_tune = SimpleNamespace(config=described, error_file=str(errors), run_metadata=tries)
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert capsys.readouterr().out == f"  LGD, seed 0: {told} (see {tmp_path / 'ray.log'})\n"
    # It has its tries anew where it got on, and only there.
    assert tries.num_failures == (0 if checkpoint else 1)
    tries.num_failures = 2
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert tries.num_failures == 2
    assert "its worker" in capsys.readouterr().out
    # It has recorded its own error, and the next worker only reports that.
    (trial.directory / FILE).touch()
    callback.on_trial_recover(1, [of_tune], of_tune)
    assert capsys.readouterr().out == ""
