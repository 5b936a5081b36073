"""What a person sees while a sweep runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ablations.display import SweepDisplay
from lgd.config.component_arms import COMPONENTS
from lgd.config.grids import plan
from lgd.config.presets import NANO
from lgd.results.record import Record, Scores
from lgd.training.run import failed_record


def _progress(step: int, eta: float) -> dict[str, float]:
    return {"step": step, "steps": 100, "loss": 1.25, "eta": eta}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_outcomes_are_shown(terminal: bool, tmp_path: Path) -> None:
    trials = plan(COMPONENTS, NANO, 1, [], tmp_path)[:3]
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
            Record(status="finished", arm="baseline", experiment=NANO, student=scores, seconds={"training": 83.0}),
        )
        display.ended(trials[1].name, failed_record(NANO, "RuntimeError: [red]boom", arm="LGD"))
    shown = out.getvalue()
    assert "[2/4] baseline, seed 0: AP 12.3, 1:23 training" in shown
    assert "[3/4] LGD, seed 0: failed: RuntimeError: [red]boom" in shown
    if not terminal:
        assert "baseline, seed 0: step 10/100, loss 1.250, ETA 1:30" in shown
        # Fifteen seconds had not passed.
        assert "step 20/100" not in shown


def test_the_sweeps_eta_counts_what_waits(tmp_path: Path) -> None:
    trials = plan(COMPONENTS, NANO, 1, [], tmp_path)[:3]
    now = [0.0]
    display = SweepDisplay(
        trials, total=3, finished=0, max_concurrent=1, console=Console(file=io.StringIO()), now=lambda: now[0]
    )
    display.progress(trials[0].name, _progress(0, 100.0))
    now[0] = 100.0
    display.ended(trials[0].name, failed_record(NANO, "x"))
    display.progress(trials[1].name, _progress(50, 50.0))
    assert display._remaining() == 50 + 100


def test_a_report_without_figures_keeps_those_before(tmp_path: Path) -> None:
    # After an evaluation neither loss nor pace is known: "loss nan" would read as a divergence.
    trials = plan(COMPONENTS, NANO, 1, [], tmp_path)[:1]
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


def _display(tmp_path: Path, now: list[float], **options: int) -> tuple[SweepDisplay, list[str], io.StringIO]:
    trials = plan(COMPONENTS, NANO, 1, [], tmp_path)
    out = io.StringIO()
    console = Console(file=out, width=120, color_system=None)
    display = SweepDisplay(trials, finished=0, console=console, now=lambda: now[0], **options)
    return display, [t.name for t in trials], out


def test_a_sweep_does_not_end_before_what_runs_in_it(tmp_path: Path) -> None:
    now = [0.0]
    display, names, _ = _display(tmp_path, now, total=4, max_concurrent=2)
    # One failed before its first step: it says nothing about how long the others take.
    display.ended(names[0], failed_record(NANO, "x"))
    display.progress(names[1], _progress(0, 100.0))
    display.progress(names[2], _progress(0, 50.0))
    now[0] = 10.0
    display.progress(names[1], _progress(10, 90.0))
    display.progress(names[2], _progress(20, 40.0))
    # The last begins when the shorter one has ended, and takes as long as they do: (100 + 50) / 2.
    assert display._remaining() == 40 + 75
    now[0] = 50.0
    display.ended(names[2], failed_record(NANO, "x"))
    display.progress(names[3], _progress(0, 2.0))
    display.progress(names[1], _progress(50, 50.0))
    assert display._remaining() == 50


def test_a_failed_trial_is_one_line_and_the_path_of_its_traceback(tmp_path: Path) -> None:
    display, names, out = _display(tmp_path, [0.0], total=2, max_concurrent=1)
    traceback = tmp_path / "trials" / names[0] / "error.txt"
    traceback.parent.mkdir(parents=True)
    traceback.write_text("Traceback ...")
    display.ended(
        names[0],
        failed_record(NANO, "RuntimeError: first\nsecond").model_copy(update={"reason": "RuntimeError: first\nsecond"}),
    )
    display.ended(names[1], failed_record(NANO, "RuntimeError: no file"))
    assert out.getvalue().splitlines() == [
        f"[1/2] baseline, seed 0: failed: RuntimeError: first (see {traceback})",
        "[2/2] LGD, seed 0: failed: RuntimeError: no file",
    ]
