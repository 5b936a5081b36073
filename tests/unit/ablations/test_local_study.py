"""A search's study in the results directory, on a disk that is full, or in a file that cannot be written."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray import tune
from sqlalchemy import event
from sqlalchemy.pool import Pool

from ablations.search import optuna_search
from ablations.search.local_study import LocalStudy
from ablations.search.optuna_search import STUDY_FILE, Search
from ablations.search.study_place import StudyUnreachableError
from ablations.sweep_display import NoDisplay
from ablations.trial_config import RecordLabels
from ablations.tune.ray_sweep import run_sweep
from lgd.distributed.resources import Resources
from lgd.files import DiskFullError
from lgd.results.record import FILE, Record, load
from tests.helpers_search import LGD_NANO, driver, end, interrupt, progress

LABELS, RESOURCES = RecordLabels("components", "nano"), Resources(1, 0, 1)


@pytest.fixture
def full() -> Iterator[list[bool]]:
    """Once it holds anything, SQLite finds no space for what is new, as on a full disk."""
    on: list[bool] = []

    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"pragma max_page_count = {1 if on else 2**30}")

    event.listen(Pool, "checkout", limit)
    yield on
    event.remove(Pool, "checkout", limit)


def _fill(search: Search, monkeypatch: pytest.MonkeyPatch, on: list[bool]) -> None:
    """Let the disk be full while Ray Tune would run, and ask for trials until none comes."""

    def fit(tuner: Any) -> None:
        on.append(True)
        searcher = tuner._local_tuner._tune_config.search_alg
        asked = [searcher.suggest(f"{i}") for i in range(60)]
        assert searcher.FINISHED in asked
        assert searcher.suggest("more") == searcher.FINISHED

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    search.study()


def test_a_full_disk_under_the_study_ends_the_sweep_as_what_it_is(
    full: list[bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Search(LGD_NANO, tmp_path, samples=100)
    _fill(search, monkeypatch, full)
    with pytest.raises(DiskFullError) as ended:
        run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search)
    assert str(ended.value).startswith(f"{tmp_path / STUDY_FILE} cannot be written: No space left on device (")
    full.clear()
    # What was half proposed goes on.
    with driver(search) as searcher:
        assert searcher.suggest("1")["name"] == "search-000"


def test_a_full_disk_under_a_journal_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a results directory that is a URL."""
    search = Search(LGD_NANO, tmp_path, samples=3)
    monkeypatch.setattr(optuna_search, "store_of", lambda _: object())

    def append(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match=r"^No space|cannot be written: No space"), driver(search) as searcher:
        monkeypatch.setattr(JournalFileBackend, "append_logs", append)
        assert searcher.suggest("1") == searcher.FINISHED


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_study_that_cannot_be_written_ends_the_sweep_with_its_reason(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that may only be read, or another process that has it for longer than SQLite waits."""
    monkeypatch.setattr(optuna_search, "LOCK_TIMEOUT", 0.1)
    search = Search(LGD_NANO, tmp_path, samples=3)
    search.study()
    other = sqlite3.connect(tmp_path / STUDY_FILE, isolation_level=None)

    def fit(tuner: Any) -> None:
        other.execute("begin exclusive")
        searcher = tuner._local_tuner._tune_config.search_alg
        assert searcher.suggest("1") == searcher.FINISHED

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    if when == "before":
        monkeypatch.setattr(Search, "check_study", lambda _: other.execute("begin exclusive"))
    why = run_sweep([], LABELS, tmp_path, RESOURCES, NoDisplay(), search=search).why
    other.close()
    assert why == f"{tmp_path / STUDY_FILE}: the study cannot be read or written (database is locked)"


def test_nothing_is_asked_of_a_study_that_failed() -> None:
    study, asked = LocalStudy(Path("study.db")), list[int]()

    def ask() -> None:
        asked.append(1)
        raise sqlite3.OperationalError("not of SQLAlchemy") if len(asked) > 1 else OSError("gone")

    assert study.tried(ask) is None
    assert study.tried(ask) is None
    assert (asked, study.away) == ([1], "study.db: the study cannot be read or written (gone)")
    with pytest.raises(StudyUnreachableError, match="gone"):
        study.check()


# -- trials that have ended in the study alone


def _pruned(search: Search) -> str:
    """The name of a trial that ASHA ended and whose driver was killed before it had a record."""
    with driver(search) as searcher:
        name = str(searcher.suggest("1")["name"])
        interrupt(search, name, {2: 1.0, 4: 2.0})
        directory = search.output / "trials" / name
        (directory / "checkpoints").mkdir()
        (directory / "checkpoints" / "step-00000004.pth").touch()
        searcher.on_trial_complete("1", progress(5, 2.0, 4))
        # The end of the search would write it.
        shutil.copytree(search.output, search.output.with_name("killed"))
    shutil.rmtree(search.output)
    search.output.with_name("killed").rename(search.output)
    return name


def _place(kind: str, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/study.db" if kind == "shared" else ""


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_a_trial_that_was_ended_early_is_never_lost(kind: str, tmp_path: Path) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, early_stop=True, place=_place(kind, tmp_path))
    name = _pruned(search)
    directory = search.output / "trials" / name
    assert not (directory / FILE).exists()
    assert search.left() == 4
    beside = Search(LGD_NANO, tmp_path / "b", samples=4, early_stop=True, place=search.place)
    with driver(beside):
        # It is not this one's.
        assert not (beside.output / "trials").exists()
    with driver(search):
        record = load(directory / FILE)
        assert search.left() == 3
    assert (record.status, record.steps, record.arm) == ("stopped", 4, name)
    assert [x.step for x in record.evaluations] == [2, 4]
    assert record.student is not None
    assert record.student.AP == 2.0
    assert not (directory / "checkpoints").exists()
    (trial,) = search.study().get_trials(states=(TrialState.PRUNED,))
    assert trial.params


def test_without_space_for_its_record_it_keeps_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = Search(LGD_NANO, tmp_path / "a", samples=4, early_stop=True)
    name = _pruned(search)

    def save(*_: Any) -> None:
        raise DiskFullError(28, "No space left on device", "record.json")

    with monkeypatch.context() as patch:
        patch.setattr(Record, "save", save)
        with pytest.raises(DiskFullError), driver(search):
            pass
    assert [*(search.output / "trials" / name / "checkpoints").iterdir()]
    with driver(search):
        assert search.left() == 3


def test_a_trial_that_failed_and_has_no_record_gets_one(tmp_path: Path) -> None:
    """What its directory holds stays, and another is proposed in its place."""
    search = Search(LGD_NANO, tmp_path / "a", samples=4)
    with driver(search) as searcher:
        first, second = searcher.suggest("1"), searcher.suggest("2")
        interrupt(search, first["name"], {2: 1.0})
        searcher.on_trial_complete("1", error=True)
        # Without a directory there is nothing to tell of.
        searcher.on_trial_complete("2", error=True)
    directory = search.output / "trials" / first["name"]
    record = load(directory / FILE)
    assert (record.status, record.reason) == ("failed", "it failed, and its record was lost")
    assert search.left() == 4
    assert not (search.output / "trials" / second["name"]).exists()


def test_what_waits_to_go_on_gets_no_record(tmp_path: Path) -> None:
    """An earlier version failed in the study what it put into the queue again."""
    search = Search(LGD_NANO, tmp_path / "a", samples=4)
    with driver(search) as searcher:
        name = searcher.suggest("1")["name"]
        interrupt(search, name, {2: 1.0})
    study = search.study()
    study.tell(0, state=TrialState.FAIL)
    study.enqueue_trial(study.trials[0].params)
    with driver(search) as searcher:
        again = searcher.suggest("2")
        assert again["name"] == name
        assert not (search.output / "trials" / name / FILE).exists()
        searcher.on_trial_complete("2", end(search, again, curve={2: 1.0}))
    assert load(search.output / "trials" / name / FILE).status == "finished"
