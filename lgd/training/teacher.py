"""The training of a frozen teacher: a run like any other, made once and shared by the runs that use it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lgd.config.experiment import Experiment
from lgd.distributed import ranks
from lgd.files import write_text
from lgd.results.record import Pretraining, Record
from lgd.training import run as training
from lgd.training.resume import existing_record

USERS = "users.json"

LOCK_POLL = 30.0
"""Seconds that a worker waits for a teacher's lock at a time."""


def home(experiment: Experiment, teachers: Path) -> Path:
    """Where the teacher that ``experiment`` describes lies: under its fingerprint, known from building it."""
    return teachers / training.dry_build(experiment)


def pretrained(
    experiment: Experiment,
    teachers: Path,
    *,
    user: Path,
    preset: str = "",
    on_progress: Callable[[training.Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: float = 1.0,
) -> tuple[Pretraining, Path]:
    """Train the teacher that ``experiment`` describes, unless an equal one is there; what it cost, and its weights.

    user: directory of the run that uses it. Raises RuntimeError, one line, when the training did not finish.
    """
    place = ranks.run_on_all_ranks(lambda: home(experiment, teachers))
    before = ranks.run_on_all_ranks(lambda: existing_record(place, experiment) is not None, first_only=True)
    record = trained(
        experiment, place, preset=preset, arm="teacher", on_progress=on_progress, should_stop=should_stop, share=share
    )
    if record.status != "finished":
        raise RuntimeError(f"the teacher's training {record.status}: {record.reason} (see {place})")
    with _lock(place):
        shared_by = ranks.run_on_all_ranks(lambda: _users(place, user), first_only=True)
    return cost(record, reused=before, shared_by=shared_by), place / "student.pth"


def trained(experiment: Experiment, place: Path, **rest: Any) -> Record:
    """The record of the teacher in ``place``, trained now unless it was (``rest``: of :func:`lgd.training.run.run`).

    Of several processes that want the same teacher one trains it and the others wait. An interrupted training goes on
    from its own checkpoint; one that diverged would diverge again.
    """
    with _lock(place):
        found = ranks.run_on_all_ranks(lambda: existing_record(place, experiment), first_only=True)
        return found or training.run(experiment, place, **rest)


@contextmanager
def _lock(place: Path) -> Iterator[None]:
    """Inside, nobody else is at work on this teacher. The first worker holds the lock for all of its training's."""
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / "lock")
    # The others must not wait in one collective for as long as a teacher trains elsewhere: it would time out.
    while not ranks.broadcast(ranks.is_main_process() and _acquired(lock)):
        pass
    try:
        yield
    finally:
        if ranks.is_main_process():
            lock.release()


def _acquired(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=LOCK_POLL)
    except Timeout:
        return False
    return True


def cost(record: Record, *, reused: bool, shared_by: int) -> Pretraining:
    """What the training in ``record`` costs a run that uses it."""
    return Pretraining(
        fingerprint=record.fingerprint,
        backbone=record.experiment.detector.backbone.name,
        steps=record.steps,
        AP=record.student.AP if record.student else None,
        device_seconds=record.device_seconds,
        joules=record.joules,
        reused=reused,
        shared_by=shared_by,
    )


def _users(home: Path, user: Path) -> int:
    """Note that ``user`` uses this teacher, once; how many do up to it."""
    path, name = home / USERS, str(user.resolve())
    users: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if name not in users:
        users.append(name)
        write_text(path, json.dumps(users, indent=1) + "\n")
    return users.index(name) + 1
