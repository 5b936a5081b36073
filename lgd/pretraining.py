"""The training of a frozen teacher: a run like any other, made once and shared by the runs that rest on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock

from lgd import parallel, train
from lgd.experiment import Experiment
from lgd.files import write_text
from lgd.record import FILE, Pretraining, Record, load

USERS = "users.json"


def home(experiment: Experiment, teachers: Path) -> Path:
    """Where the teacher that ``experiment`` describes lies: under its fingerprint, known from building it."""
    return teachers / train.build(experiment, pretrained=False).fingerprint


def pretrained(
    experiment: Experiment,
    teachers: Path,
    *,
    user: Path,
    preset: str = "",
    tell: Callable[[train.Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Pretraining, Path]:
    """Train the teacher that ``experiment`` describes, unless an equal one is there; what it cost, and its weights.

    user: directory of the run that rests on it. Raises RuntimeError, one line, when the training did not finish.
    """
    place = home(experiment, teachers)
    before = parallel.agreed(parallel.first() and _finished(place) is not None)
    record = trained(experiment, place, preset=preset, arm="teacher", tell=tell, stop=stop)
    if record.status != "finished":
        raise RuntimeError(f"the teacher's training {record.status}: {record.reason} (see {place})")
    shared_by = parallel.agreed(_users(place, user) if parallel.first() else 0)
    return cost(record, reused=before, shared_by=shared_by), place / "student.pth"


def trained(experiment: Experiment, place: Path, **rest: Any) -> Record:
    """The record of the teacher in ``place``, trained now unless it was (``rest``: of :func:`lgd.train.run`).

    Of several processes that want the same teacher one trains it and the others wait. An interrupted training goes on
    from its own checkpoint.
    """
    with ExitStack() as stack:
        if parallel.first():
            # The first worker holds the lock for all of its training's.
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(place / "lock"))
        found: Record | None = parallel.agreed(_finished(place) if parallel.first() else None)
        return found or train.run(experiment, place, **rest)


def _finished(place: Path) -> Record | None:
    path = place / FILE
    record = load(path) if path.exists() else None
    return record if record and record.status == "finished" else None


def cost(record: Record, *, reused: bool, shared_by: int) -> Pretraining:
    """What the training in ``record`` costs a run that rests on it."""
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
    """Note that ``user`` rests on this teacher, once; how many do up to it."""
    path, name = home / USERS, str(user.resolve())
    users: list[str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    if name not in users:
        users.append(name)
        write_text(path, json.dumps(users, indent=1) + "\n")
    return users.index(name) + 1
