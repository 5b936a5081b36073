"""A sweep whose results directory is a URL: who is at work on it, and where its trials train."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from ablations.display import say
from ablations.trial_config import TrialConfig
from lgd.storage import outputs
from lgd.storage.store import StorageError


@contextlib.contextmanager
def at_work(directory: Path, console: Console) -> Iterator[None]:
    """Inside, no sweep on another machine is at work on what ``directory`` stands for, and what it writes is published.

    Raises LeaseHeldError where one is. SIGTERM comes to this process when another has taken it for dead. Does nothing
    for a directory of this machine alone.
    """
    if outputs.store_of(directory) is None:
        yield
        return

    def wait(holder: str) -> None:
        say(console, f"{outputs.shown(directory)}: looking whether {holder} is still at work there ...")

    def lost() -> None:
        say(console, f"{outputs.shown(directory)}: another sweep has taken over, since this one did not answer")
        os.kill(os.getpid(), signal.SIGTERM)

    with outputs.held(directory, on_wait=wait, on_lost=lost) as lease:
        outputs.fetch_records(directory)
        outputs.publish_records(directory)
        # What the other sweep has written by then stays.
        with outputs.publishing_own(directory, every=lease.check if lease else lambda: None):
            yield


class Place(NamedTuple):
    """Where a trial trains on this machine."""

    directory: Path
    teachers: Path
    stopped: Callable[[], bool]
    """Whether the sweep is to stop."""


@contextlib.contextmanager
def place_of(trial: TrialConfig) -> Iterator[Place]:
    """Inside, the trial trains; of a sweep whose results directory is a URL, what it writes is published.

    Where it has several workers they do that, each on the disk of its node (lgd/training/node_disks.py), and here is
    only what is known of it. Raises StorageError where the store does not answer, and where another sweep has taken
    over: the trial is stopped then, and no longer published.
    """
    directory, teachers = outputs.output_path(trial["directory"]), outputs.output_path(trial["teachers"])
    stop = outputs.Signal(trial["stop"], trial["lease"])
    stop.refresh()
    if trial["workers"] > 1:
        outputs.fetch_notes(directory)
        yield Place(directory, teachers, stop.is_there)
        return
    with outputs.working_in(directory, every=stop.refresh):
        yield Place(directory, teachers, stop.is_there)


def try_to_publish(*paths: Path) -> None:
    """Publish files that the next command on the sweep publishes where the store does not answer now."""
    with contextlib.suppress(StorageError):
        outputs.publish_files(*paths)
