"""A worker's notice that it will have to go: its node is drained, or the process got SIGTERM.

A training asks for it between steps and in evaluations (:func:`asked`), writes a checkpoint, and goes on for as long as
it can; after SIGTERM the process leaves. Nothing here knows Ray: who starts the workers says how a drained node is
recognised.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal, NoReturn

from lgd.signals import on_signal

Notice = Literal["", "save", "leave"]
"""``save``: write a checkpoint now. ``leave``: and end this process then."""

POLL_INTERVAL_S = 2.0
"""Seconds between two looks whether the node is being drained."""

REPEAT_S = 15.0
"""Seconds between two checkpoints on a node that is being drained: at most this much is lost when it goes."""

EXIT_TIMEOUT_S = 10.0
"""Seconds that a process has to end in good order after it was told to leave."""

_sigterm = threading.Event()
_draining = threading.Event()
_saved = float("-inf")


@contextmanager
def listening() -> Iterator[None]:
    """Inside, the first SIGTERM is a notice; the next one does what it did before. In the main thread only."""
    _sigterm.clear()
    with on_signal(_sigterm.set, signal.SIGTERM):
        yield


def listen() -> None:
    """The same from now on, for a process whose training runs in another thread than its main one, which calls this."""
    before = signal.getsignal(signal.SIGTERM)

    def answer(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        _sigterm.set()

    _sigterm.clear()
    signal.signal(signal.SIGTERM, answer)


@contextmanager
def watching(drained: Callable[[], bool]) -> Iterator[None]:
    """Inside, a thread calls ``drained`` every POLL_INTERVAL_S: whether this process's node is being taken away."""
    global _draining
    ended, draining = threading.Event(), threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_INTERVAL_S):
            # Nothing is known where the cluster does not answer.
            with suppress(Exception):
                draining.set() if drained() else draining.clear()

    before, _draining = _draining, draining
    threading.Thread(target=watch, name="notice", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        # Not cleared: the thread may be about to set it.
        _draining = before


def asked() -> Notice:
    """What this process is asked for now."""
    if _sigterm.is_set():
        return "leave"
    return "save" if _draining.is_set() and time.monotonic() - _saved >= REPEAT_S else ""


def saved() -> None:
    """A checkpoint was written for the notice of this process, or of another worker."""
    global _saved
    _saved = time.monotonic()


class Leaving(BaseException):
    """The checkpoint is written, and this process has to go: :func:`end_process`. Not an error of the training."""


def end_process() -> NoReturn:
    """End this process as SIGTERM would have. From any thread."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(EXIT_TIMEOUT_S)
    os._exit(128 + signal.SIGTERM)
