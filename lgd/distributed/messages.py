"""What a launcher and the main worker of its work tell each other, through the key-value store of the Ray cluster.

Not through files: the two may run on nodes that share no disk. While the cluster's head does not answer, nothing is
told.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray.experimental import internal_kv as kv

NAMESPACE = "lgd"

LOOK_INTERVAL_S = 0.5
"""Seconds between two looks of a worker whether it is to stop: it asks after every step."""

OnProgress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Messages:
    """Of one launch. May be pickled."""

    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    def put(self, name: str, text: str) -> bool:
        """Whether it was told."""
        with suppress(Exception):
            kv._internal_kv_put(f"{self.key}/{name}", text, overwrite=True, namespace=NAMESPACE)
            return True
        return False

    def get(self, name: str) -> str:
        """ "" where nothing was told."""
        with suppress(Exception):
            return (kv._internal_kv_get(f"{self.key}/{name}", namespace=NAMESPACE) or b"").decode()
        return ""

    def remove(self) -> None:
        with suppress(Exception):
            kv._internal_kv_del(f"{self.key}/", del_by_prefix=True, namespace=NAMESPACE)


class LauncherEnd:
    """The launcher's end: passes the progress on, and the wish to stop."""

    def __init__(self, messages: Messages, on_progress: OnProgress) -> None:
        self.messages, self._on_progress = messages, on_progress
        self._seen, self._stop_sent = "", False
        self.stop = threading.Event()
        """Set it, from wherever, to have the workers asked to stop."""

    def poll(self) -> None:
        """Ask the workers to stop if they are to; call ``on_progress`` if there is something new.

        Raises what ``on_progress`` raises; the next call goes on all the same.
        """
        if self.stop.is_set() and not self._stop_sent:
            # Again at the next call where the cluster's head does not answer.
            self._stop_sent = self.messages.put("stop", "stop")
        text = self.messages.get("progress")
        if text and text != self._seen:
            self._seen = text
            self._on_progress(json.loads(text))


class WorkerEnd:
    """The main worker's end."""

    def __init__(self, messages: Messages) -> None:
        self._messages, self._next, self._stop = messages, 0.0, False

    def report(self, progress: dict[str, Any]) -> None:
        self._messages.put("progress", json.dumps(progress))

    def asked_to_stop(self) -> bool:
        now = time.monotonic()
        if not self._stop and now >= self._next:
            self._next = now + LOOK_INTERVAL_S
            self._stop = bool(self._messages.get("stop"))
        return self._stop
