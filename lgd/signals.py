"""Answering a signal once, for as long as something runs."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signal(act: Callable[[], object], *signals: signal.Signals) -> Iterator[None]:
    """Inside, the first of ``signals`` is answered by ``act``; the next does what it did before.

    Only a process's main thread can; in another nothing is changed.
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
