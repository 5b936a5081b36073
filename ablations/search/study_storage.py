"""Optuna's storage for a study that the user named: reached before anything is trained, and shared by several drivers.

A database's trials have a heartbeat (https://optuna.readthedocs.io: "Heartbeat monitoring"): those of a driver that is
gone are proposed again to another one. Optuna sends it from ``Study.optimize``, which Ray Tune does not use, so
:func:`heartbeats` does here. A journal has none.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy as sql
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from ablations.search.study_journal import StoreJournal, first_unreadable
from ablations.search.study_place import PASSWORD_VARIABLE, StudyUnreachableError, in_store
from lgd.background import called_every
from lgd.config.experiment import difference, parse
from lgd.errors import InputError
from lgd.storage.outputs import is_url
from lgd.storage.store import LONGEST_PAUSE, StorageError, seconds_of_patience

T = TypeVar("T")

HEARTBEAT, GRACE = 60, 300
"""Seconds between two signs of life of a trial, and after which one without is taken for dead."""

RETRIES = 3
"""How often what a driver that is gone left is proposed again."""

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
"""Seconds to reach a database, and for which it may say nothing once it was asked."""

LIBPQ = {
    "connect_timeout": CONNECT_TIMEOUT,
    # A server that acknowledged what it was asked, and is gone then, is found out by TCP's keepalives alone.
    "keepalives": 1, "keepalives_idle": READ_TIMEOUT // 2, "keepalives_interval": READ_TIMEOUT // 6,
    "keepalives_count": 3, "tcp_user_timeout": 1000 * READ_TIMEOUT,
}  # fmt: skip
MYSQL = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT, "write_timeout": READ_TIMEOUT}
TIMEOUTS = {
    "psycopg2": LIBPQ, "psycopg": LIBPQ, "pg8000": {"timeout": READ_TIMEOUT}, "pymysql": MYSQL, "mysqldb": MYSQL,
    "mysqlconnector": {"connection_timeout": CONNECT_TIMEOUT}, "mariadbconnector": MYSQL,
}  # fmt: skip
"""Options by the driver of the database. Without them a lost connection is waited for as long as TCP does: 15 minutes
and more."""

LOCK_TIMEOUT = 60
"""Seconds for which SQLite waits for another process."""

PACKAGES = {"psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient"}
"""Names of packages that are not those of their modules."""

SHOWN = 3
"""Settings that differ which are named."""

AWAY = (StorageInternalError, SQLAlchemyError, OSError)
"""What a study raises whose database does not answer."""

POLL = 0.5
"""Seconds between two looks whether the sweep is to stop."""

_log = logging.getLogger(__name__)


class Database(RDBStorage):
    """Optuna's storage in a database. Its password, of PASSWORD_VARIABLE, is in no pickle of it: Tune writes some."""

    def __init__(self, place: str) -> None:
        self._place = place
        super().__init__(
            _with_password(place),
            _engine_options(place),
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )

    def __getstate__(self) -> dict[Any, Any]:
        return {**super().__getstate__(), "url": self._place}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        super().__setstate__({**state, "url": _with_password(state["_place"])})


@lru_cache(maxsize=8)
def storage_of(place: str) -> BaseStorage:
    """The storage at ``place`` (:func:`ablations.search.study_place.study_place`); one for a process.

    Raises InputError, one line.
    """
    with one_line(place):
        if in_store(place):
            journal = StoreJournal(place)
            if line := first_unreadable(journal.read_logs(0)):
                raise InputError(f"--study {place}: not a study that can be read (line {line})")
            return JournalStorage(journal)
        if not is_url(place):
            return JournalStorage(JournalFileBackend(place))
        return Database(place)


def find_study(place: str, name: str) -> optuna.Study | None:
    """The study that is there already; nothing is written. Raises InputError, one line, where it cannot be reached."""
    with one_line(place):
        if not is_url(place):
            _check_file(Path(place))
            there = Path(place).exists()
        elif in_store(place):
            there = StoreJournal(place).exists()
        else:
            there = _has_studies(place)
        if not there:
            return None
        try:
            return optuna.load_study(study_name=name, storage=storage_of(place))
        except KeyError:
            return None


def _check_file(path: Path) -> None:
    if not path.parent.is_dir():
        raise InputError(f"--study {path}: there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise InputError(f"--study {path}: a file, and not a directory or a device")
    if path.exists():
        with path.open("rb") as file:
            if file.read(15) == b"SQLite format 3":
                raise InputError(f"--study {path}: a database: name it sqlite:///{path}")
        if line := damaged_line(path):
            raise InputError(f"--study {path}: not Optuna's journal, or not one that can be read (line {line})")


def damaged_line(path: Path) -> int:
    """The number of the first line that Optuna cannot replay of its journal, or 0. The last one may be half written."""
    with path.open("rb") as file:
        return first_unreadable(json.loads(line) for line in file if line.endswith(b"\n"))


def cut_off_half_line(path: Path) -> None:
    """Remove what is half written at the end of a journal that nobody else writes to: what is added would spoil it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _has_studies(place: str) -> bool:
    """Whether the database has Optuna's tables."""
    url = sql.make_url(place)
    if url.get_backend_name() == "sqlite" and url.database and not url.database.startswith("file:"):
        path = Path(url.database)
        if not path.parent.is_dir():
            raise InputError(f"--study {place}: there is no directory {path.parent}")
        if not path.exists():
            return False
        if not path.is_file():
            raise InputError(f"--study {place}: a file, and not a directory or a device")
    engine = sql.create_engine(_with_password(place), **_engine_options(place))
    try:
        return sql.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _with_password(place: str) -> str:
    url, password = sql.make_url(place), os.environ.get(PASSWORD_VARIABLE)
    if password is not None and url.get_backend_name() != "sqlite":
        url = url.set(password=password)
    return url.render_as_string(hide_password=False)


def _engine_options(place: str) -> dict[str, Any]:
    """A connection that was lost meanwhile is made anew, and one that cannot be made is given up soon."""
    url = sql.make_url(place)
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": LOCK_TIMEOUT}}
    return {"pool_pre_ping": True, "connect_args": dict(TIMEOUTS.get(url.get_driver_name(), {}))}


@contextlib.contextmanager
def one_line(place: str) -> Iterator[None]:
    """What the study at ``place`` raises inside is an InputError of one line: StudyUnreachableError, if no answer."""
    try:
        yield
    except StorageError as error:
        raise StudyUnreachableError(f"--study {error}") from None
    except InputError:
        raise
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        package = PACKAGES.get(module, module)
        raise InputError(f"--study {place}: needs the package {module}: pip install {package!r}") from None
    except NoSuchModuleError:
        raise InputError(f"--study {place}: no database that SQLAlchemy knows") from None
    except ArgumentError:
        raise InputError(f"--study {place}: not a URL as SQLAlchemy takes it") from None
    except AWAY as error:
        raise StudyUnreachableError(f"--study {place}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """What the driver of the database says, in one line."""
    inner = error
    while isinstance(inner, StorageInternalError) and inner.__cause__ is not None:
        inner = inner.__cause__
    said = getattr(inner, "orig", None) or inner
    return " ".join(str(said).split())[:200] or type(said).__name__


def patiently(place: str, request: Callable[[], T], stopped: Callable[[], bool] = lambda: False) -> T:
    """Ask again where the database is away, as object storage is (LGD_STORAGE_PATIENCE), until the sweep is to stop.

    Raises StudyUnreachableError.
    """
    patience, begun, pause = seconds_of_patience(), time.monotonic(), 0.2
    while True:
        try:
            return request()
        except AWAY as error:
            waited = time.monotonic() - begun
            left = patience - waited
            if left <= 0 or stopped():
                raise StudyUnreachableError(
                    f"study {place}: no answer for {min(waited, patience):.0f} s ({reason(error)})"
                ) from None
            if pause < 0.3:
                _log.warning("study %s: %s: trying again for %.0f s", place, reason(error), patience)
            until = time.monotonic() + min(pause * random.uniform(0.5, 1.0), left)
            while (rest := until - time.monotonic()) > 0 and not stopped():
                time.sleep(min(rest, POLL))
            pause = min(2 * pause, LONGEST_PAUSE)


@contextlib.contextmanager
def heartbeats(storage: BaseStorage, trial_ids: Callable[[], Iterable[int]]) -> Iterator[None]:
    """While the block runs, a thread gives the trials' sign of life. trial_ids: of those that are being trained now."""
    if not isinstance(storage, RDBStorage) or storage.get_heartbeat_interval() is None:
        yield
        return

    def record_heartbeats() -> None:
        for number in trial_ids():
            # A database that is away for longer than GRACE lets others take them for dead.
            with contextlib.suppress(*AWAY):
                storage.record_heartbeat(number)

    with called_every(HEARTBEAT, record_heartbeats, "heartbeats"):
        yield


OWNER = "lgd_results"
"""Attribute of a trial: which results directory it is trained in."""

SETTINGS = "lgd_settings"
"""Attribute of a study: what it searches."""


@dataclass
class SharedStudy:
    """A study that other drivers may be at work on, for a searcher."""

    place: str
    study: optuna.Study
    storage: BaseStorage
    owner: str
    """Of this driver's results directory."""
    stopped: Callable[[], bool] = lambda: False
    """Whether the sweep is to stop."""
    away: str = ""
    """Why nothing more is proposed: the database does not answer."""
    running: dict[str, int] = field(default_factory=dict)
    """Optuna's ids of the trials that are being trained, by Tune's."""
    unfinished: set[int] = field(default_factory=set)
    """Optuna's ids of the trials that this driver is to go on with."""

    @property
    def alive(self) -> list[int]:
        """Optuna's ids of the trials that are this driver's."""
        return [*self.running.values(), *self.unfinished]

    def tried(self, request: Callable[[], T]) -> T | None:
        """Ask with patience; None, and ``away`` says why, where there is no answer. Then nothing more is asked."""
        if self.away:
            return None
        try:
            return patiently(self.place, request, self.stopped)
        except StudyUnreachableError as error:
            self.away = str(error)
            return None

    def check(self) -> None:
        """Raise StudyUnreachableError where the search ended since there was no answer."""
        if self.away:
            raise StudyUnreachableError(self.away)

    def ended(self, trial_id: str) -> None:
        """Tune's trial needs no sign of life any more."""
        self.running.pop(trial_id, None)

    def taken(self, number: int) -> None:
        """Another driver has the trial with this id of Optuna's, which this one was to go on with."""
        self.unfinished.discard(number)

    def claim(self, trial_id: str, trial: optuna.Trial) -> None:
        """Say in the study whose trial it is, and that it is alive."""
        if trial.user_attrs.get(OWNER) != self.owner:
            trial.set_user_attr(OWNER, self.owner)
        self.running[trial_id] = trial._trial_id
        self.unfinished.discard(trial._trial_id)
        self._beat(trial._trial_id)

    def _beat(self, number: int) -> None:
        if isinstance(self.storage, RDBStorage):
            self.storage.record_heartbeat(number)

    def fail_stale(self) -> None:
        """Let what drivers that are gone left be proposed again."""
        # After the database was away, or this process suspended, its own trials would be among them.
        for number in self.alive:
            self._beat(number)
        optuna.storages.fail_stale_trials(self.study)


def check_settings(place: str, study: optuna.Study, ours: Mapping[str, Any]) -> None:
    """Raise InputError, one line, where a study searches something else. ours: SETTINGS of this search."""
    theirs = study.user_attrs.get(SETTINGS)
    if theirs is None and not study.get_trials(deepcopy=False):
        return
    what = ""
    if not isinstance(theirs, Mapping):
        what = "it is not of a search of this suite"
    elif theirs.get("goal") != ours["goal"]:
        what = f"it is of a search with {theirs.get('goal')}, not {ours['goal']}"
    elif theirs.get("space") != ours.get("space"):
        what = "it is of a search with another search space (--search-space, or what --set fixes)"
    elif theirs.get("experiment") != ours["experiment"]:
        what = "it is of a search with other settings"
        with contextlib.suppress(InputError, TypeError):
            differ = difference(parse(theirs["experiment"]), parse(ours["experiment"])).split(", ")
            what += f" ({', '.join(differ[:SHOWN])}{f' and {len(differ) - SHOWN} more' if len(differ) > SHOWN else ''})"
    if what:
        raise InputError(f"study {study.study_name!r} of {place}: {what}: choose another --study-name")
