"""Optuna's journal in object storage, to which several drivers write at once.

Nothing can be added to an object. So what is written at a time is an object of its own, URL/00000001.log,
URL/00000002.log and so on. It is created where there is none of its number yet, which of several drivers succeeds once
(:meth:`lgd.storage.store.Store.create`); the others read what is there, and take the next number. All drivers thus see
the same entries in the same order, and no lock is left by one that is killed. The objects one after the other are the
file of Optuna's ``JournalFileBackend``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from optuna.storages.journal import BaseJournalBackend, JournalStorage

from lgd.errors import InputError
from lgd.storage.store import Store

PATIENCE = 10.0
"""Seconds for which one request is tried again: whoever asks a study again and again (study_storage.patiently) looks
meanwhile whether the sweep is to stop."""

NAME = re.compile(r"(\d{8})\.log")

SIDE_BY_SIDE = 16
"""Requests at a time when a journal is read from its beginning."""


class StoreJournal(BaseJournalBackend):
    """The journal whose objects lie under ``url``. Not for several threads at once: JournalStorage has a lock."""

    def __init__(self, url: str) -> None:
        self._store = Store(url, PATIENCE)
        self._logs: list[dict[str, Any]] = []
        self._objects = 0
        """Those that have been read."""

    def exists(self) -> bool:
        """Whether anything was written. Raises InputError where other things lie there; StorageError."""
        return bool(self._names())

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """The entries from this number on."""
        if not self._objects:
            names = self._names()
            with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
                for data in threads.map(self._store.read, names):
                    self._add(data or b"")
        while (data := self._store.read(self._next)) is not None:
            self._add(data)
        return self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add entries, after those that others have added meanwhile."""
        data = "".join(f"{json.dumps(x, separators=(',', ':'))}\n" for x in logs).encode()
        while not self._store.create(self._next, data):
            there = self._store.read(self._next) or b""
            self._add(there)
            # What is written twice for a lost answer is found; every entry names the thread that made it.
            if there == data:
                return
        self._add(data)

    # ------------------------------------------------------------------------------------------------------

    @property
    def _next(self) -> str:
        return _name(self._objects + 1)

    def _names(self) -> Sequence[str]:
        """Of the objects that are there."""
        url, entries = self._store.url, self._store.entries(must_exist=True)
        others = [x for x in sorted(entries) if not NAME.fullmatch(x)]
        if others or (not entries and self._store.exists("")):
            what = f"there is {others[0]} there" if others else "an object"
            raise InputError(f"--study {url}: {what}; a study needs a place of its own, such as {url}-study")
        names = [_name(i + 1) for i in range(len(entries))]
        missing = [x for x in names if x not in entries]
        if missing:
            raise InputError(f"--study {url}: {missing[0]} is missing of what was written there")
        return names

    def _add(self, data: bytes) -> None:
        try:
            found = [json.loads(x) for x in data.splitlines()]
            if not found or not all(isinstance(x, dict) and "op_code" in x for x in found):
                raise ValueError
        except (ValueError, RecursionError):
            raise InputError(f"--study {self._store.url}: {self._next} is no entry of Optuna's journal") from None
        self._logs += found
        self._objects += 1


class _Entries(BaseJournalBackend):
    """Entries that Optuna replays once, in the place of a journal."""

    def __init__(self, entries: Iterable[dict[str, Any]]) -> None:
        self._entries = entries
        self.replayed = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        for entry in self._entries:
            yield entry
            # It is asked for the next when it has done this one.
            self.replayed += 1

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        raise NotImplementedError


def first_unreadable(entries: Iterable[dict[str, Any]]) -> int:
    """The number, from 1, of the first entry of a journal that Optuna cannot replay, or 0.

    What is JSON may still be no operation of its, or one that lacks something. Raises OSError where ``entries`` does.
    """
    journal = _Entries(entries)
    try:
        JournalStorage(journal)
    except OSError:
        raise
    except Exception:  # of an entry that is none: whatever looking into it raises
        return journal.replayed + 1
    return 0


def _name(number: int) -> str:
    return f"{number:08}.log"
