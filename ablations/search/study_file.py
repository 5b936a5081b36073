"""Whether a study in the results directory, a file, can be read."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from ablations.search.study_storage import damaged_line
from lgd.errors import InputError
from lgd.storage.outputs import shown

DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""What SQLite says of a file that is no database, or no whole one."""


def check_file(path: Path) -> None:
    """Raise InputError, one line, where SQLite cannot read a study. Makes none.

    What a driver left that was killed while it wrote is rolled back, as SQLite does for whoever opens a database next.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path}: not a study that can be read (not a regular file): remove it")
    damaged = True
    try:
        # Not mode=ro, which rolls nothing back.
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as connection:
            state = str(connection.execute("pragma quick_check(1)").fetchone()[0])
    except sqlite3.DatabaseError as error:
        state = str(error)
        # The lower byte is the kind of error; without a code it is of no known kind.
        damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in DAMAGED
    if state == "ok":
        return
    reason = " ".join(state.split())
    if not damaged:
        raise InputError(f"{shown(path)}: the study cannot be read ({reason})")
    raise _unreadable(path, reason)


def check_journal(path: Path) -> None:
    """The same of Optuna's journal."""
    line = damaged_line(path) if path.exists() else 0
    if line:
        raise _unreadable(path, f"line {line} is no entry of Optuna's journal that it can replay")


def _unreadable(path: Path, reason: str) -> InputError:
    return InputError(
        f"{shown(path)}: not a study that can be read ({reason}): remove it, and the search goes on without"
    )
