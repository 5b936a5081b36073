"""Who is at work on a part of a store: a lease, in the place of a lock file.

A lease is an object ``lease/NUMBER.json`` that its holder renews. Whoever wants it creates the next number, which of
several succeeds once (:meth:`lgd.storage.store.Store.create`), so nothing but creating an object that is not there has
to be atomic. It may be taken where the last number was given back, where its holder was a process of this machine that
is gone, or where it was not renewed for as long as a lease lasts; that is watched, so no two clocks are compared.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from lgd.errors import InputError
from lgd.storage.store import StorageError, Store

LASTS = 60.0
"""Seconds after which a lease that was not renewed may be taken over."""

RENEWALS = 4
"""How often it is renewed in that time."""

LONGEST_WATCH = 10
"""How many times as long it is watched at most where the store is slow to answer."""

FOLDER = "lease"


class LeaseHeldError(InputError):
    """Another process is at work there."""


class LeaseLostError(StorageError):
    """Another process has taken over what this one, or the one that started it, was at work on."""


def check_newest(store: Store, number: int) -> None:
    """Raise LeaseLostError where the lease of this number on ``store`` is no longer the newest."""
    if _numbers(store)[-1:] != [number]:
        raise LeaseLostError(f"{store.url}: another command has taken over")


@dataclass
class Lease:
    """The lease on ``store``; a context manager that gives it back."""

    store: Store
    lasts: float = field(default_factory=lambda: LASTS)
    on_lost: Callable[[], None] = lambda: None
    """Called, in another thread, when another process has taken it over, since this one did not renew it in time (it
    was suspended, or the store did not answer)."""
    lost: bool = False
    _number: int = 0
    _token: str = field(default_factory=lambda: uuid.uuid4().hex)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def acquire(
        self, *, on_wait: Callable[[str], None] = lambda _: None, should_stop: Callable[[], bool] = lambda: False
    ) -> Self:
        """Take the lease. on_wait: told who holds it, where that has to be watched first.

        Raises LeaseHeldError where its holder renews it, or ``should_stop`` ends the watching.
        """
        number, held = self._last()
        if held is not None and not _may_be_taken(held):
            on_wait(_holder(held))
            number, held = self._watch(number, held, should_stop)
        mine = number + 1
        if not self.store.create(self._name(mine), self._content()):
            # Somebody was faster, or the answer to what this process has written was lost.
            there = self._read(mine)
            if there is None or there.get("token") != self._token:
                raise LeaseHeldError(f"{self.store.url}: {_holder(there or {})} has begun to work there just now")
        self._number = mine
        self.store.remove(*(self._name(n) for n in _numbers(self.store) if n < mine))
        self._thread = threading.Thread(target=self._renew, name="renew lease", daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """Give it back. The object stays, marked: the next holder's number is above it."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if not self.lost:
                with suppress(StorageError):
                    self.store.with_patience(10).write(self._name(self._number), self._content(released=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def number(self) -> int:
        """Those that are taken later have greater ones."""
        return self._number

    def check(self) -> None:
        """Raise LeaseLostError where another process has taken it over, as far as is known since the last renewal."""
        if self.lost:
            raise LeaseLostError(f"{self.store.url}: another command has taken over")

    # ------------------------------------------------------------------------------------------------------

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{number:06}.json"

    def _content(self, *, released: bool = False) -> bytes:
        described = {**_this_process(), "token": self._token, "renewed": time.time(), "released": released}
        return json.dumps(described, indent=1).encode()

    def _read(self, number: int) -> dict[str, Any] | None:
        data = self.store.read(self._name(number))
        try:
            return None if data is None else dict(json.loads(data))
        except ValueError:
            return {}

    def _last(self) -> tuple[int, dict[str, Any] | None]:
        numbers = _numbers(self.store)
        return (numbers[-1], self._read(numbers[-1])) if numbers else (0, None)

    def _watch(
        self, number: int, held: dict[str, Any], should_stop: Callable[[], bool]
    ) -> tuple[int, dict[str, Any] | None]:
        """The last lease once it may be taken. Raises LeaseHeldError when it is renewed instead."""
        begun = first = time.monotonic()
        while time.monotonic() - begun < self.lasts:
            time.sleep(self.lasts / (4 * RENEWALS))
            asked = time.monotonic()
            now = self._last()
            if self.lasts / RENEWALS < time.monotonic() - asked and asked - first < LONGEST_WATCH * self.lasts:
                # The store was away, for the holder too, which renews again when it answers; one that is always slow is
                # no reason to wait for ever.
                begun = max(begun + time.monotonic() - asked, time.monotonic() - self.lasts / 2)
            if now != (number, held):
                if now[1] is None or _may_be_taken(now[1]):
                    return now
                raise LeaseHeldError(
                    f"{self.store.url}: {_holder(now[1])} is at work there; wait for it, or choose another --output"
                )
            if should_stop():
                raise LeaseHeldError(f"{self.store.url}: {_holder(held)} may be at work there")
        return number, held

    def _renew(self) -> None:
        store = self.store.with_patience(self.lasts / RENEWALS)
        while not self._ended.wait(self.lasts / RENEWALS):
            # One that does not answer now may do so the next time.
            with suppress(StorageError):
                if _numbers(store)[-1:] != [self._number]:
                    self.lost = True
                    self.on_lost()
                    return
                store.write(self._name(self._number), self._content())


def _numbers(store: Store) -> list[int]:
    names = [name.removeprefix(f"{FOLDER}/").removesuffix(".json") for name in store.entries(FOLDER)]
    return sorted(int(x) for x in names if x.isdigit())


def _may_be_taken(held: dict[str, Any]) -> bool:
    """Whether a lease was given back, or its holder was a process of this machine and is gone."""
    if held.get("released"):
        return True
    here = _this_process()
    if any(held.get(key) != here[key] for key in ("host", "machine")):
        return False
    try:
        return abs(psutil.Process(int(held["pid"])).create_time() - float(held["started"])) > 1
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "machine": _machine(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def _machine() -> str:
    """What tells machines, and containers on them, of one host name apart: the boot, and the table of processes."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return str(psutil.boot_time())


def _holder(held: dict[str, Any]) -> str:
    return f"process {held.get('pid', '?')} on {held.get('host', 'another machine')}"
