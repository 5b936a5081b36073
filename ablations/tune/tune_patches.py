"""What Ray Tune does wrong, put right for the time of a sweep."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayError, RayTaskError

from lgd.methods.feature_capture import patched_method


@contextmanager
def lost_workers_fail_alone() -> Iterator[None]:
    """Inside, a trial whose worker Ray ends for want of memory fails alone.

    Ray 2.60 reports that as OutOfMemoryError, which is no RayActorError, and Tune's manager of actors knows these alone
    (``RayActorManager._actor_task_failed``): it raises, and with it ends the whole sweep.
    """
    # Looked up by name: it is no public module.
    manager: Any = importlib.import_module("ray.air.execution._internal.actor_manager").RayActorManager
    failed = manager._actor_task_failed

    def task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, RayError) and not isinstance(exception, (RayActorError, RayTaskError)):
            exception = RayActorError(error_msg=str(exception))
        failed(self, tracked_actor_task, exception)

    with patched_method(manager, "_actor_task_failed", task_failed):
        yield


def last_error(trial: Any) -> str:
    """What a trial failed with the last time; "" where nothing is known.

    Not ``trial.get_error()``: it reads the storage path, to which Tune copies the file of the errors only later.
    """
    with suppress(OSError):
        text = Path(trial.error_file or "").read_text(encoding="utf-8", errors="replace")
        # Each begins with a line that has its number and time.
        return text.rpartition("Failure # ")[2].partition("\n")[2].strip()
    return ""
