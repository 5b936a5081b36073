"""Signals: handled once while something runs, Ctrl-C and SIGTERM while a command imports its modules or runs."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def on_signal(act: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    """Inside the block the first of ``signals`` calls ``act``; the next one does what it did before.

    Only in a process's main thread: in another nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def answer(*_: object) -> None:
        restore()
        act()

    for number in signals:
        signal.signal(number, answer)
    try:
        yield
    finally:
        restore()


@contextmanager
def keep_handlers(*signals: signal.Signals) -> Iterator[None]:
    """After the block each of ``signals`` has the handler that it had before. Only in a process's main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM does what Ctrl-C does, so that what is half done is tidied up; a second one ends the process.

    Only where it would have ended the process: a handler that is there already stays. One that is installed inside,
    such as Ray's, counts there, and is not removed afterwards.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    global _interruptible
    _interruptible = os.getpid()
    signal.signal(signal.SIGTERM, _answer_to_sigterm)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) == _answer_to_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


_interruptible = 0
"""The process whose SIGTERM is to interrupt it."""


def _answer_to_sigterm(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getpid() == _interruptible:
        interrupt()
    # A forked child has inherited this handler: whoever ends that, such as a pool of processes, expects it to end.
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> NoReturn:
    """What Ctrl-C does, for another signal."""
    raise KeyboardInterrupt


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Inside the block, which only imports, Ctrl-C or SIGTERM prints one line and ends the process: exit status 130.

    A KeyboardInterrupt is not enough there: raised inside the import of a C extension, it comes out as another error.
    """

    def leave() -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    numbers = [signal.SIGINT]
    if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, _answer_to_sigterm):
        # Not where a sweep or a training answers it, with a line of its own.
        numbers.append(signal.SIGTERM)
    with on_signal(leave, *numbers):
        yield


def run_command(module: str) -> NoReturn:
    """Import ``module`` and exit with what its ``main()`` returns. Ctrl-C during the import is one line."""
    with exit_on_interrupt():
        main = importlib.import_module(module).main
    sys.exit(main())
