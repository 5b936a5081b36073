"""The training of a frozen teacher: a run like any other, made once and shared by the runs that rest on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from lgd import parallel, train
from lgd.experiment import Experiment
from lgd.files import write_text
from lgd.record import FILE, Pretraining, Record, load

USERS = "users.json"


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

    It lies in ``teachers`` under its fingerprint, with its record, and goes on from its own checkpoint after an
    interruption. user: directory of the run that rests on it. Of several processes that want the same teacher one
    trains it and the others wait. Raises RuntimeError when the training did not finish.
    """
    fingerprint = train.build(experiment, pretrained=False).fingerprint
    home = teachers / fingerprint
    if not parallel.first():
        # The first worker holds the lock for all.
        return _trained(experiment, home, fingerprint, user, preset, tell, stop)
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        return _trained(experiment, home, fingerprint, user, preset, tell, stop)


def _trained(
    experiment: Experiment,
    home: Path,
    fingerprint: str,
    user: Path,
    preset: str,
    tell: Callable[[train.Progress], None],
    stop: Callable[[], bool],
) -> tuple[Pretraining, Path]:
    path = home / FILE
    reused = parallel.agreed(parallel.first() and path.exists() and load(path).status == "finished")
    record = load(path) if reused else train.run(experiment, home, preset=preset, arm="teacher", tell=tell, stop=stop)
    if record.status != "finished":
        raise RuntimeError(f"the teacher's training {record.status}: {record.reason} (see {home})")
    shared_by = parallel.agreed(_users(home, user) if parallel.first() else 0)
    return cost(record, fingerprint, reused=reused, shared_by=shared_by), home / "student.pth"


def cost(record: Record, fingerprint: str, *, reused: bool, shared_by: int) -> Pretraining:
    """What the training in ``record`` costs a run that rests on it."""
    return Pretraining(
        fingerprint=fingerprint,
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
