"""A worker that Ray ends for want of memory is a failed actor to Ray Tune, and not the end of the sweep."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError, RayActorError

from ablations.tune.tune_patches import last_error, lost_workers_fail_alone


def test_a_trial_out_of_memory_fails_alone() -> None:
    manager: Any = importlib.import_module("ray.air.execution._internal.actor_manager").RayActorManager
    told: list[tuple[str, Exception]] = []
    actor = SimpleNamespace(actor_id=1, _on_error=lambda _, error: told.append(("actor", error)))
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: told.append(("task", error)))
    there = SimpleNamespace(_failed_actor_ids=set(), _cleanup_actor=lambda tracked_actor: None)
    error = OutOfMemoryError("killed due to the node running low on memory")
    # Where Ray does it right itself, the patch may go.
    with pytest.raises(RuntimeError, match="unexpected exception"):
        manager._actor_task_failed(there, task, error)
    with lost_workers_fail_alone():
        # As Ray calls it.
        manager._actor_task_failed(there, tracked_actor_task=task, exception=error)
    assert [name for name, _ in told] == ["actor", "task"]
    assert all(isinstance(x, RayActorError) and "low on memory" in str(x) for _, x in told)
    assert there._failed_actor_ids == {1}


def test_the_last_error_is_read_where_tune_writes_it(tmp_path: Path) -> None:
    trial = SimpleNamespace(error_file=str(tmp_path / "error.txt"))
    assert last_error(trial) == ""
    (tmp_path / "error.txt").write_text("Failure # 1 (at noon)\nlow on memory\nFailure # 2 (at one)\nkilled\n")
    assert last_error(trial) == "killed"
