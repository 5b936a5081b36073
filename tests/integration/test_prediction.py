"""How far the prediction of a sweep's cost is off: the arithmetic, and a real sweep through all of its steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ablations import prediction_error
from ablations.prediction_error import Comparison, compare, main, repeat, summary
from lgd.results.cost_meter import FIRST_STEPS
from lgd.results.record import Record, load
from tests.helpers import quick_experiment


def test_the_error_is_that_of_the_mean_of_both_predictions() -> None:
    found = Comparison(90.0, 98.0, 100.0, 100.0)
    assert found.error == pytest.approx(-0.06)
    assert found.is_steady
    assert found.line() == "predicted 90.0 device-s before and 98.0 after, recorded 100.0: -6.0%"
    changed = Comparison(90.0, 100.0, 100.0, 100.0)
    assert not changed.is_steady
    assert changed.line().endswith("-5.0%; not counted, the machine's speed changed")


def test_the_summary_is_of_the_best_steady_comparison() -> None:
    """A neighbour that comes and goes between the two measurements makes an error; no luck makes it small."""
    off, near, busy = (Comparison(x, y, 100.0, 100.0) for x, y in ((120.0, 121.0), (90.0, 91.0), (100.0, 130.0)))
    assert summary([off, near, busy]) == ("error -9.5%, within 15%", 0)
    assert summary([off, busy]) == ("error +20.5%, beyond 15%", 1)
    assert summary([busy, busy]) == ("no result: the machine's speed changed during each of 2 sweeps", 1)


def test_sweeps_are_repeated_until_one_is_steady_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Iterator[Comparison]:
        for before, after in ((100.0, 130.0), (120.0, 121.0), (90.0, 91.0), (100.0, 100.0)):
            yield Comparison(before, after, 100.0, 100.0)

    comparisons, lines = made(), list[str]()
    monkeypatch.setattr(prediction_error, "compare", lambda base, directory: next(comparisons))
    assert [x.before for x in repeat(quick_experiment(), 9, lines.append)] == [100.0, 120.0, 90.0]
    assert len(lines) == 3
    comparisons = made()
    assert len(repeat(quick_experiment(), 2, lines.append)) == 2


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(prediction_error, "compare", lambda base, directory: Comparison(1.0, 1.0, 2.0, 2.0))
    assert main(["--tries", "2"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "error -50.0%, beyond 15%"
    assert main(["--steps", "3"]) == 2
    assert capsys.readouterr().err == "error: --steps 3: at least 11\n"


@pytest.mark.slow
def test_a_sweep_is_measured_run_and_predicted_from_its_records(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction from the sweep's own records is what it took; the clock decides nothing here."""
    monkeypatch.setattr("benchmarks.measure_cost.ROUNDS", 1)
    monkeypatch.setattr("benchmarks.measure_cost.STEPS", 2)
    base = quick_experiment(**{"schedule.steps": 12, "evaluation.every": 0})
    found = compare(base, tmp_path)
    records = [load(path) for path in tmp_path.glob("t*/*/record.json")]
    assert len(records) == 4, "three trials and FGFI's teacher"
    # The first steps count as no faster than the others, though they may have been.
    faster = sum(max(0.0, _step(x) * FIRST_STEPS - x.within_training["first_steps"]) for x in records)
    assert found.from_records == pytest.approx(found.recorded + faster, rel=0.02)
    assert found.before > 0
    assert found.after > 0


def _step(record: Record) -> float:
    """Mean seconds of a step after the first ones."""
    return (record.seconds["training"] - record.within_training["first_steps"]) / (record.steps - FIRST_STEPS)
