"""A search's study in a database: its password, and what happens while it does not answer."""

from __future__ import annotations

import io
import pickle
import sqlite3
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.console import Console
from sqlalchemy.exc import OperationalError

from ablations.plan import describe, search_spec
from ablations.search import study_storage
from ablations.search.optuna_search import Search, search_of
from ablations.search.search_results import show_search
from ablations.search.study_place import PASSWORD_VARIABLE, StudyUnreachableError
from ablations.search.study_storage import find_study, patiently, storage_of
from ablations.sweep_display import NoDisplay
from ablations.trial_config import STOP_FILE, RecordLabels, TrialConfig, trial_config
from ablations.tune.ray_sweep import run_sweep
from lgd.config.grids import Trial
from lgd.config.presets import NANO
from lgd.distributed.resources import Resources
from lgd.errors import InputError
from lgd.results.sweep_spec import SweepSpec
from lgd.storage.store import PATIENCE_VARIABLE

LGD_NANO = NANO.override({"method.name": "lgd"})
LABELS, RESOURCES = RecordLabels("components", "nano"), Resources(1, 0, 1)
URL = "postgresql://me@host/lgd"


def _base(directory: Path) -> TrialConfig:
    return trial_config(Trial("", LGD_NANO, directory), LABELS, directory, RESOURCES)


def _name(searcher: Any, trial_id: str) -> Any:
    return searcher.suggest(trial_id)["name"]


@pytest.fixture
def asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The URLs of connections. PostgreSQL, whose driver is not installed here, is a file."""
    urls: list[str] = []
    create = sqlalchemy.create_engine

    def engine(url: str, **_: Any) -> sqlalchemy.Engine:
        urls.append(url)
        return create(f"sqlite:///{tmp_path}/server.db")

    for name in ("sqlalchemy.create_engine", "sqlalchemy.engine.create_engine"):
        monkeypatch.setattr(name, engine)
    storage_of.cache_clear()
    return urls


def test_the_password_comes_from_the_environment_and_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked_for: list[str]
) -> None:
    """Not in the sweep's description, not in what Ray Tune writes of a searcher when it begins and when it ends."""
    monkeypatch.setenv(PASSWORD_VARIABLE, "a/secret")
    output = tmp_path / "out"
    spec = describe("components", "nano", search=search_spec(3, ["AP"], False, URL))
    spec.write(output)
    assert SweepSpec.read(output) == spec
    search = search_of(spec, output)
    assert search is not None

    def fit(tuner: Any) -> None:
        searcher = tuner._local_tuner._tune_config.search_alg
        assert _name(searcher, "1") == "search-000"
        searcher.save_to_dir(str(output / "tune"))
        assert not [*output.glob("tune/searcher-state*")]
        # As it would without save() of its own.
        OptunaSearch.save(searcher, str(output / "tune" / "state"))

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    run_sweep([], LABELS, output, RESOURCES, NoDisplay(), search=search)
    written = {str(x.relative_to(output)): x.read_bytes() for x in output.rglob("*") if x.is_file()}
    assert {"sweep.json", "tune/tuner.pkl", "tune/state"} <= written.keys()
    assert b"me@host" in written["tune/tuner.pkl"]
    assert [name for name, content in written.items() if b"secret" in content] == []
    assert set(asked_for) == {"postgresql://me:a%2Fsecret@host/lgd"}
    asked_for.clear()
    again = pickle.loads(pickle.dumps(storage_of(URL)))
    assert asked_for == ["postgresql://me:a%2Fsecret@host/lgd"]
    assert [x.state.name for x in optuna.load_study(study_name="lgd", storage=again).trials] == ["RUNNING"]


def test_a_database_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PostgreSQL's driver says it. What it said has no password in it."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("", {}, ConnectionRefusedError('connection to "host" failed:\n\tIs the server running?'))

    monkeypatch.setattr("sqlalchemy.create_engine", refuse)
    monkeypatch.setenv(PASSWORD_VARIABLE, "a/secret")
    said = rf'^--study {URL}: connection to "host" failed: Is the server running\?$'
    with pytest.raises(StudyUnreachableError, match=said):
        find_study(URL, "lgd")


@pytest.mark.parametrize(
    ("url", "timeouts"),
    [
        ("postgresql+psycopg2://host/x", {"connect_timeout": 10, "keepalives": 1, "tcp_user_timeout": 60_000}),
        ("postgresql+psycopg://host/x", {"connect_timeout": 10, "keepalives": 1, "tcp_user_timeout": 60_000}),
        ("postgresql+pg8000://host/x", {"timeout": 60}),
        ("mysql+pymysql://host/x", {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60}),
        ("mysql://host/x", {"connect_timeout": 10, "read_timeout": 60, "write_timeout": 60}),
    ],
)
def test_a_connection_that_was_lost_is_given_up(
    url: str, timeouts: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each driver has names of its own for it, and refuses others'."""
    given: dict[str, Any] = {}

    def note(_: str, **options: Any) -> None:
        given.update(options)
        raise OperationalError("", {}, ConnectionRefusedError("refused"))

    monkeypatch.setattr("sqlalchemy.create_engine", note)
    with pytest.raises(InputError, match="refused"):
        find_study(url, "lgd")
    assert given["pool_pre_ping"]
    assert timeouts.items() <= given["connect_args"].items()
    assert ("connect_timeout" in given["connect_args"]) == ("connect_timeout" in timeouts)


def test_a_driver_does_not_take_its_own_trials_for_dead(tmp_path: Path) -> None:
    """The database was away, or the driver suspended, for longer than the grace: nobody gave their sign of life."""
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")
    with search.opened(_base(search.output)) as (searcher, _, _):
        names = [_name(searcher, "1")]
        _let_time_pass(tmp_path / "study.db", study_storage.GRACE + 60)
        names.append(_name(searcher, "2"))
    assert names == ["search-000", "search-001"]
    assert [x.state.name for x in search.study().trials] == ["RUNNING", "RUNNING"]
    beside = Search(LGD_NANO, tmp_path / "b", samples=4, place=search.place)
    _let_time_pass(tmp_path / "study.db", study_storage.GRACE + 60)
    with beside.opened(_base(beside.output)) as (searcher, _, _):
        # Of those of a driver that is gone.
        assert _name(searcher, "1") == "search-000"


def _let_time_pass(database: Path, seconds: int) -> None:
    connection = sqlite3.connect(database)
    with connection:
        changed = connection.execute(
            f"update trial_heartbeats set heartbeat = datetime(heartbeat, '-{seconds} seconds')"
        )
    assert changed.rowcount
    connection.close()


# -- away


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Search:
    """A search whose database goes away when the first trial is to be proposed."""
    search = Search(LGD_NANO, tmp_path / "a", samples=4, place=f"sqlite:///{tmp_path}/study.db")

    def no_answer(*_: Any, **__: Any) -> Any:
        raise optuna.exceptions.StorageInternalError("the server closed the connection")

    def fit(tuner: Any) -> None:
        monkeypatch.setattr(RDBStorage, "_create_new_trial", no_answer)
        monkeypatch.setattr(RDBStorage, "get_study_id_from_name", no_answer)
        searcher = tuner._local_tuner._tune_config.search_alg
        assert searcher.suggest("1") == searcher.FINISHED
        if (search.output / STOP_FILE).exists():
            (search.output / "told").touch()

    monkeypatch.setattr(tune.Tuner, "fit", fit)
    return search


def test_a_sweep_whose_study_went_away_ends_with_its_tables(away: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.2")
    outcome = run_sweep([], LABELS, away.output, RESOURCES, NoDisplay(), search=away)
    gone = f"study {away.place}: no answer for 0 s (the server closed the connection)"
    assert outcome.why == gone
    out = io.StringIO()
    spec = describe("components", "nano", search=search_spec(4, ["AP"], False, away.place))
    assert show_search(spec, away, Console(file=out, width=300)) == []
    assert out.getvalue().splitlines() == [
        f"--study {away.place}: the server closed the connection: the trials of the search are not shown"
    ]


def test_a_sweep_that_is_to_stop_waits_for_no_study(away: Search) -> None:
    """And its trials are told at once."""
    begun = time.monotonic()

    def exceeded(_: float) -> str:
        return "SIGTERM came" if time.monotonic() - begun > 0.5 else ""

    outcome = run_sweep([], LABELS, away.output, RESOURCES, NoDisplay(), search=away, budget_exceeded=exceeded)
    assert outcome.why == "SIGTERM came"
    assert (away.output / "told").exists()
    assert time.monotonic() - begun < 20


def test_nothing_more_is_asked_of_a_study_once_it_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial's every report would wait as long again, and Tune with it."""
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.1")
    asked: list[int] = []

    def ask() -> None:
        asked.append(1)
        raise OSError("gone")

    study = optuna.create_study()
    shared = study_storage.SharedStudy("x", study, study._storage, "me")
    assert shared.tried(ask) is None
    count = len(asked)
    assert shared.away == "study x: no answer for 0 s (gone)"
    assert shared.tried(ask) is None
    assert len(asked) == count
    with pytest.raises(StudyUnreachableError):
        patiently("x", ask, lambda: True)
    assert len(asked) == count + 1
