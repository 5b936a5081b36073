"""One command at a time trains to a directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lgd.errors import InputError

LOCK = "lock"


@contextmanager
def training_lock(directory: Path) -> Iterator[None]:
    """Inside, no other command trains to ``directory``, which is made.

    Leaves nothing of its own. A directory that cannot be written to is not locked: what trains there says so. Raises
    InputError where another command is at work.
    """
    path = directory / LOCK
    lock, was_there = FileLock(path, timeout=0), path.exists()
    made = [x for x in (directory, *directory.parents) if not x.exists()]
    # Also of a directory with a finished training that may only be read.
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{directory}: another training is at work there; wait for it, or choose another --output"
            ) from None
    try:
        yield
    finally:
        if lock.is_locked:
            if not was_there:
                path.unlink(missing_ok=True)
            lock.release()
        # Not those that something was written to.
        with suppress(OSError):
            for place in made:
                place.rmdir()
