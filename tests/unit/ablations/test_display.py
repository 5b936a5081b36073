"""What a person sees while a sweep runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ablations.display import SweepDisplay
from lgd.config.grids import COMPONENTS, plan
from lgd.config.presets import TINY
from lgd.results.record import Record, Scores
from lgd.training.run import failed_record


def _progress(step: int, eta: float) -> dict[str, float]:
    return {"step": step, "steps": 100, "loss": 1.25, "eta": eta}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_outcomes_are_shown(terminal: bool, tmp_path: Path) -> None:
    trials = plan(COMPONENTS, TINY, 1, [], tmp_path)[:3]
    now = [0.0]
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, color_system=None)
    display = SweepDisplay(trials, total=4, finished=1, max_concurrent=2, console=console, now=lambda: now[0])
    scores = Scores(AP=12.34, AP50=1.0, AP75=1.0, APs=None, APm=None, APl=None)
    with display:
        display.progress(trials[0].name, _progress(10, 90.0))
        now[0] = 10
        display.progress(trials[0].name, _progress(20, 80.0))
        now[0] = 100
        display.ended(
            trials[0].name,
            Record(status="finished", arm="baseline", experiment=TINY, student=scores, seconds={"training": 83.0}),
        )
        display.ended(trials[1].name, failed_record(TINY, "RuntimeError: [red]boom", arm="LGD"))
    shown = out.getvalue()
    assert "[2/4] baseline, seed 0: AP 12.3, 1:23 training" in shown
    assert "[3/4] LGD, seed 0: failed: RuntimeError: [red]boom" in shown
    if not terminal:
        assert "baseline, seed 0: step 10/100, loss 1.250, ETA 1:30" in shown
        # Fifteen seconds had not passed.
        assert "step 20/100" not in shown


def test_the_sweeps_eta_counts_what_waits(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, TINY, 1, [], tmp_path)[:3]
    now = [0.0]
    display = SweepDisplay(
        trials, total=3, finished=0, max_concurrent=1, console=Console(file=io.StringIO()), now=lambda: now[0]
    )
    display.progress(trials[0].name, _progress(0, 100.0))
    now[0] = 100.0
    display.ended(trials[0].name, failed_record(TINY, "x"))
    display.progress(trials[1].name, _progress(50, 50.0))
    assert display._remaining() == 50 + 100


def test_a_report_without_figures_keeps_those_before(tmp_path: Path) -> None:
    # After an evaluation neither loss nor pace is known: "loss nan" would read as a divergence.
    trials = plan(COMPONENTS, TINY, 1, [], tmp_path)[:1]
    now, out = [0.0], io.StringIO()
    console = Console(file=out, width=120, color_system=None)
    display = SweepDisplay(trials, total=1, finished=0, max_concurrent=1, console=console, now=lambda: now[0])
    for step, loss, eta in ((1, float("nan"), float("nan")), (10, 1.25, 90.0), (20, float("nan"), float("nan"))):
        display.progress(trials[0].name, {"step": step, "steps": 100, "loss": loss, "eta": eta})
        now[0] += 100
    first, second, third = out.getvalue().splitlines()
    assert first.endswith("step 1/100, loss –, ETA ?; whole sweep ETA ?")
    assert second.endswith("step 10/100, loss 1.250, ETA 1:30; whole sweep ETA 1:30")
    assert third.endswith("step 20/100, loss 1.250, ETA 1:30; whole sweep ETA 1:30")
