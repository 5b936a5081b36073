"""A function that is called again and again in a thread, while a block of code runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def called_every(seconds: float, action: Callable[[], None], name: str | None = None) -> Iterator[None]:
    """While the block runs, a daemon thread calls ``action``, first after ``seconds`` and then as long after each call.

    At the block's end a call that is running is waited for, and none begins after it. An error of ``action`` ends the
    thread. name: the thread's.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            action()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
