"""Whether the Ray that a sweep runs on is still there. Ray itself would end it after a minute, without a next command.

Without its raylet no new worker starts, but those that run go on: the sweep ends as after SIGTERM. Without its head
(the global control store) calls to Ray wait, and Ray ends the process after a minute: before that the trials are
asked for a checkpoint, the user is told, and the process ends.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

HEAD, RAYLET = "gcs_server", "raylet"

PERIOD_S, PERIOD_ELSEWHERE_S = 1.0, 5.0
"""Seconds between two looks: at processes of this machine, and at a head elsewhere, each a connection to it."""

GRACE_S = 15.0
"""Seconds for the trials to write their checkpoints when the head of this machine's own Ray has ended."""

AWAY_S = 45.0
"""Seconds for which a cluster's head may not answer: it may be started again meanwhile. Ray waits for a minute."""


def own_processes() -> dict[str, psutil.Process]:
    """The head and the raylet that this process has started, by name; empty where it uses another cluster."""
    with suppress(psutil.Error):
        return {x.name(): x for x in psutil.Process().children() if x.name() in (HEAD, RAYLET)}
    return {}


def head_address() -> str:
    """HOST:PORT of the head that this process is connected to."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


class RayWatch:
    """Inside the block, looks again and again, in a thread, whether Ray is still there.

    stop_file: asks the trials to stop. processes: this machine's own, by name; without them the head at ``address`` is
    asked for. give_up: called with the reason where the block cannot end by itself.
    """

    def __init__(
        self,
        stop_file: Path,
        give_up: Callable[[str], None],
        *,
        processes: Mapping[str, psutil.Process],
        address: str,
        grace: float = GRACE_S,
        away: float = AWAY_S,
        period: float | None = None,
    ) -> None:
        self._stop_file, self._give_up = stop_file, give_up
        self._processes, self._address = dict(processes), address
        self._grace, self._away = grace, away
        self._period = (PERIOD_S if processes else PERIOD_ELSEWHERE_S) if period is None else period
        self._answered = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.lost = ""
        """Why the sweep has to end; "" while Ray is there."""

    def __enter__(self) -> RayWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.lost:
            if self._over.wait(self._period):
                return
            self.lost = self._reason()
        if not self._processes or not _runs(self._processes.get(HEAD)):
            with suppress(OSError):
                self._stop_file.touch()
            if not self._over.wait(self._grace):
                self._give_up(self.lost)

    def _reason(self) -> str:
        for name, process in self._processes.items():
            if not _runs(process):
                return f"Ray's {name} ended"
        if self._processes:
            return ""
        now = time.monotonic()
        host, _, port = self._address.rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host, int(port)), timeout=5):
            self._answered = now
        return f"Ray's head at {self._address} does not answer" if now - self._answered > self._away else ""


def _runs(process: psutil.Process | None) -> bool:
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_at_once(status: int) -> None:
    """End this process and all that it has started: what waits for Ray could not be ended otherwise."""
    with suppress(psutil.Error):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
    os._exit(status)
