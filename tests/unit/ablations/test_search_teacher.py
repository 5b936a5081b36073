"""A search of a method with a frozen teacher: that is trained before anything is proposed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray import tune

from ablations.search.optuna_search import STUDY_FILE, Search
from ablations.sweep_display import NoDisplay
from ablations.trial_config import TEACHERS, RecordLabels
from ablations.tune.ray_sweep import run_sweep
from ablations.tune.ray_trial import config_of
from lgd.distributed.resources import Resources
from lgd.training.run import failed_record
from lgd.training.teacher import teacher_directory
from tests.helpers import quick_experiment

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


def test_without_a_teacher_nothing_is_proposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that diverged would again: every trial of the search would fail for want of it."""
    search = _search(tmp_path)
    teacher = search.base.teacher
    assert teacher is not None
    record = failed_record(teacher, "loss is nan in step 3", arm="teacher", grid="components", preset="nano")
    record.model_copy(update={"status": "diverged"}).save(teacher_directory(teacher, tmp_path / TEACHERS))
    outcome = run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search)
    assert outcome.why == "the teacher's training diverged: loss is nan in step 3"
    assert not (tmp_path / STUDY_FILE).exists()
