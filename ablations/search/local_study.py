"""The study in the results directory: what the suite says where it cannot be read or written."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import optuna

from ablations.search.study_place import StudyUnreachableError
from ablations.search.study_storage import AWAY, reason
from lgd.errors import InputError
from lgd.files import DiskFullError
from lgd.storage.outputs import shown

T = TypeVar("T")


@contextlib.contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """What the study in the file ``path`` raises inside is one line: DiskFullError, else StudyUnreachableError."""
    try:
        yield
    except InputError:
        raise
    except AWAY as error:
        if full := _disk_full(error, path):
            raise full from None
        raise StudyUnreachableError(f"{shown(path)}: the study cannot be read or written ({reason(error)})") from None


def _disk_full(error: BaseException, path: Path) -> DiskFullError | None:
    """The error as what it is where a full disk caused it: of a journal an OSError, of a database what SQLite says."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, DiskFullError):
            return inner
        # The lower byte is the kind of error.
        if isinstance(inner, sqlite3.Error) and getattr(inner, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            inner = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        if isinstance(inner, OSError):
            return DiskFullError.of(inner, path)
        inner = getattr(inner, "orig", None) or inner.__cause__
    return None


@dataclass
class LocalStudy:
    """The study in the results directory, for a searcher: no other driver is at work on it.

    It is asked once: SQLite waits for locks itself, and a disk that is full stays so. Has what a
    :class:`ablations.search.study_storage.SharedStudy` has.
    """

    path: Path
    """Its file."""
    error: DiskFullError | StudyUnreachableError | None = None
    """Why nothing more is proposed."""

    @property
    def away(self) -> str:
        return str(self.error) if self.error else ""

    @property
    def alive(self) -> list[int]:
        return []

    def tried(self, request: Callable[[], T]) -> T | None:
        """Ask; None, and ``away`` says why, where that fails. Then nothing more is asked."""
        if self.error:
            return None
        try:
            with errors_of(self.path):
                return request()
        except (DiskFullError, StudyUnreachableError) as error:
            self.error = error
            return None

    def check(self) -> None:
        """Raise what ended the search, if anything did."""
        if self.error:
            raise self.error

    def claim(self, trial_id: str, trial: optuna.Trial) -> None: ...

    def ended(self, trial_id: str) -> None: ...

    def taken(self, number: int) -> None: ...

    def fail_stale(self) -> None: ...
