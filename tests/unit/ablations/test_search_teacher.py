"""A search of a method with a frozen teacher: that is trained before anything is proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune
from rich.console import Console

from ablations.limits import Budget
from ablations.outcome import finish
from ablations.plan import describe, search_spec, trials_of
from ablations.search.optuna_search import STUDY_FILE, Search, search_of
from ablations.sweep import train
from ablations.sweep_display import NoDisplay
from ablations.trial_config import TEACHERS, RecordLabels
from ablations.tune.ray_sweep import run_sweep
from ablations.tune.ray_trial import config_of
from lgd.distributed.resources import Resources
from lgd.results.record import FILE, Scores
from lgd.training.run import failed_record
from lgd.training.teacher import teacher_directory
from tests.helpers import quick_experiment
from tests.integration.commands import QUICK

LABELS, RESOURCES = RecordLabels("components", "nano"), Resources(1, 0, 1)


def _search(output: Path) -> Search:
    return Search(quick_experiment().override({"method.name": "pkd"}), output, samples=3)


def test_the_teacher_is_what_runs_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def fit(tuner: Any) -> None:
        asked.append(tuner._local_tuner._tune_config.search_alg.suggest("1"))
        raise KeyboardInterrupt

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    search = _search(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search)
    teacher = search.base.teacher
    assert teacher is not None
    assert [Path(config_of(x)["directory"]) for x in asked] == [teacher_directory(teacher, tmp_path / TEACHERS)]


def _save_teacher(search: Search, **changes: Any) -> Path:
    teacher = search.base.teacher
    assert teacher is not None
    record = failed_record(teacher, "loss is nan in step 3", arm="teacher", grid="components", preset="nano")
    place = teacher_directory(teacher, search.output / TEACHERS)
    record.model_copy(update=changes).save(place)
    return place


def _scores(ap: float) -> Scores:
    return Scores(AP=ap, AP50=ap, AP75=ap, APs=None, APm=None, APl=None)


def test_without_a_teacher_nothing_is_proposed(tmp_path: Path) -> None:
    """A teacher that diverged would again: every trial of the search would fail for want of it."""
    search = _search(tmp_path)
    place = _save_teacher(search, status="diverged")
    outcome = run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search)
    assert outcome.unsearched == (
        "nothing is searched: the teacher's training diverged: loss is nan in step 3; to train it again, remove"
        f" {place / FILE}"
    )
    assert not outcome.why
    assert not (tmp_path / STUDY_FILE).exists()


@pytest.mark.parametrize("gate", [True, False])
def test_a_teacher_that_is_no_better_than_the_baseline_is_refused_once(
    gate: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = _search(tmp_path).base
    search = Search(base.override({"method.teacher.gate": gate}), tmp_path, samples=3)
    _save_teacher(search, status="finished", student=_scores(9.0))
    plain = failed_record(base.override({"method.name": "baseline"}), "", arm="baseline", grid="", preset="nano")
    plain = plain.model_copy(update={"status": "finished", "student": _scores(9.5)})
    plain.save(tmp_path / "trials" / "baseline-seed0")
    asked: list[str] = []
    monkeypatch.setattr(tune.Tuner, "fit", lambda tuner: asked.append("more"))
    outcome = run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search)
    assert asked == ([] if gate else ["more"])
    said = "nothing is searched: the teacher's AP is 9.0, no more than the plain student's 9.5: no student is trained"
    assert outcome.unsearched.startswith(said) == gate


def test_a_search_that_proposed_nothing_did_not_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [x for x in QUICK if "=" in x]
    spec = describe("teacher-based", "nano", overrides=overrides, search=search_spec(3, ["AP"], False, method="pkd"))
    search = search_of(spec, tmp_path)
    assert search is not None
    _save_teacher(search, status="diverged")
    console = Console(width=300)
    sweep = trials_of(spec, tmp_path)
    why, _ = train(sweep, [], RESOURCES, search, Budget(), 0.0, console)
    assert (why, finish(sweep, search, why, "RESUME", console)) == ("", 1)
    said = capsys.readouterr().out
    assert "nothing is searched: the teacher's training diverged" in said
    assert "3 of 3 trials not run; go on with: RESUME" in said
