"""Trainings with a frozen teacher: the teacher is trained first, once, and shared by the trainings that use it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lgd.config.experiment import Experiment
from lgd.data.catalog import load_dataset
from lgd.data.epochs import resolve_epochs
from lgd.distributed import ranks
from lgd.files import read_file, write_text
from lgd.results.record import Pretraining, Record
from lgd.storage import outputs
from lgd.storage.lease import LeaseHeldError
from lgd.training import node_disks
from lgd.training.build import dry_build
from lgd.training.given_teacher import given_teacher, key_of
from lgd.training.progress import Progress, Stopped
from lgd.training.resume import existing_record, remove_resume_files
from lgd.training.run import TrainedTeacher, run
from lgd.training.teacher_gate import check_teacher, plain_students_ap

USERS = "users.json"
"""In a teacher's directory: the directories of the trainings that have used it."""

LOCK_POLL = 1.0
"""Seconds that a worker waits for a teacher's lock at a time; in between it is asked whether to stop."""


def train_with_teacher(
    experiment: Experiment,
    directory: Path,
    *,
    teachers: Path | None = None,
    preset: str = "",
    on_progress: Callable[[Progress], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    share: float = 1.0,
    **names: Any,
) -> Record:
    """:func:`lgd.training.run.run`, after its frozen teacher was trained where the method needs one.

    teachers: the directory of the frozen teachers (default: ``teachers`` beside ``directory``). names: grid, arm and
    overrides, for the record. Raises RuntimeError, in one line, when the teacher's training did not finish, and
    TeacherGateError when it is not good enough (lgd/training/teacher_gate.py).
    """
    experiment = resolve_epochs(experiment)
    rest: dict[str, Any] = {
        "preset": preset, "on_progress": on_progress, "should_stop": should_stop, "share": share,
    }  # fmt: skip
    teacher, teachers = None, teachers or directory.parent / "teachers"
    if experiment.teacher is not None:
        teacher = _teacher_for(experiment, experiment.teacher, teachers, user=directory, **rest)
    elif experiment.given_teacher is not None:
        teacher = _given_teacher(experiment, teachers, user=directory, share=share, should_stop=should_stop)
    if teacher is not None:
        plain = ranks.run_on_all_ranks(lambda: _plain(experiment, directory), first_only=True)
        # On every worker, each of which raises where the teacher is not good enough.
        teacher = replace(teacher, pretraining=check_teacher(experiment, teacher.pretraining, plain))
    return run(experiment, directory, teacher=teacher, **names, **rest)


def teacher_directory(experiment: Experiment, teachers: Path) -> Path:
    """The directory of the teacher that ``experiment`` describes, named by its fingerprint."""
    return teachers / dry_build(experiment)


def train_teacher(experiment: Experiment, place: Path, **rest: Any) -> Record:
    """The record of the teacher in the directory ``place``, which is trained unless it was before.

    rest: arguments of :func:`lgd.training.run.run`. Of several processes that need the same teacher one trains it and
    the others wait. An interrupted training goes on from its checkpoint; one that diverged is not repeated.
    Raises Stopped also while it waits, and where another process has taken over the lease on the directory.
    """
    should_stop: Callable[[], bool] = rest.pop("should_stop", lambda: False)
    with _lock(place, should_stop) as lost:
        found = ranks.run_on_all_ranks(lambda: _result(place, experiment), first_only=True)
        return found or run(experiment, place, should_stop=lambda: lost() or should_stop(), **rest)


def _teacher_for(
    student: Experiment, experiment: Experiment, teachers: Path, *, user: Path, **rest: Any
) -> TrainedTeacher:
    """The teacher that ``experiment`` describes, trained now unless it was before. user: directory of its ``student``.

    Raises InputError for what is wrong with the student before a teacher is trained for it, which may take days.
    """
    place = ranks.run_on_all_ranks(lambda: teacher_directory(experiment, teachers))
    before = ranks.run_on_all_ranks(lambda: _trained_before(place, experiment), first_only=True)
    if not before:
        ranks.run_on_all_ranks(lambda: dry_build(student, to_train=True, directory=user), first_only=True)
    should_stop = rest["should_stop"]
    record = train_teacher(experiment, place, arm="teacher", **rest)
    if record.status != "finished":
        raise RuntimeError(f"the teacher's training {record.status}: {record.reason} (see {outputs.shown(place)})")
    with _lock(place, should_stop):
        shared_by = ranks.run_on_all_ranks(lambda: _users(place, user), first_only=True)
    return TrainedTeacher(cost(record, reused=before, shared_by=shared_by), place / "student.pth")


def _given_teacher(
    experiment: Experiment, teachers: Path, *, user: Path, share: float, should_stop: Callable[[], bool]
) -> TrainedTeacher:
    """The trained detector that ``experiment`` is given as its teacher. user: directory of its user."""
    dataset = ranks.run_on_all_ranks(lambda: load_dataset(experiment.data))
    place = teachers / ranks.run_on_all_ranks(lambda: key_of(experiment, dataset))
    with _lock(place, should_stop):
        found = given_teacher(experiment, dataset, place, share=share)
        shared_by = ranks.run_on_all_ranks(lambda: _users(place, user), first_only=True)
    return TrainedTeacher(found.model_copy(update={"shared_by": shared_by}), None)


def _plain(experiment: Experiment, directory: Path) -> float | None:
    """Box AP of the plain student of ``experiment``, which is trained in ``directory``; None where it is not known."""
    return plain_students_ap(experiment, load_dataset(experiment.data).fingerprint, outputs.beside(directory))


@contextmanager
def _lock(place: Path, should_stop: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], bool]]:
    """Hold the lock of a teacher's directory. Of the workers of one training the main process holds it.

    Where the directory stands for a part of a store, also the lease there; what is written in it is published. Yields
    what tells, in the main process, whether another process has taken over the lease. Raises Stopped where the main
    process ``should_stop`` while it waits.
    """
    place.mkdir(parents=True, exist_ok=True)
    lost = threading.Event()
    with ExitStack() as held:
        # In a loop: a single collective would time out on the other workers while a teacher is trained elsewhere.
        while not ranks.run_on_all_ranks(lambda: _acquired(place, held, lost.set, should_stop), first_only=True):
            if ranks.run_on_all_ranks(should_stop, first_only=True):
                raise Stopped(0)
        with node_disks.working_in(place):
            yield lost.is_set


def _acquired(place: Path, held: ExitStack, on_lost: Callable[[], None], should_stop: Callable[[], bool]) -> bool:
    """Whether the lock was free; ``held`` gives it back."""
    lock = FileLock(place / "lock")
    try:
        lock.acquire(timeout=LOCK_POLL)
    except Timeout:
        return False
    held.callback(lock.release)
    try:
        held.enter_context(outputs.held(place, on_lost=on_lost, should_stop=should_stop))
    except LeaseHeldError:
        held.close()
        return False
    return True


def _result(place: Path, experiment: Experiment) -> Record | None:
    """The record of the teacher in ``place``, whose lock this process holds; None where it is to be trained."""
    record = existing_record(place, experiment)
    if record is not None:
        remove_resume_files(place, record)
    return record


def _trained_before(place: Path, experiment: Experiment) -> bool:
    outputs.fetch_notes(place)
    return existing_record(place, experiment) is not None


def cost(record: Record, *, reused: bool, shared_by: int) -> Pretraining:
    """The cost of the teacher's training in ``record``, as counted by a training that uses the teacher."""
    return Pretraining(
        fingerprint=record.fingerprint,
        backbone=record.experiment.detector.backbone_label or record.experiment.detector.label,
        steps=record.steps,
        AP=record.student.AP if record.student else None,
        device_seconds=record.device_seconds,
        joules=record.joules,
        hardware=record.hardware,
        reused=reused,
        shared_by=shared_by,
    )


def _users(home: Path, user: Path) -> int:
    """Note that ``user`` uses this teacher, once; how many do up to it."""
    path, name = home / USERS, outputs.shown(user.resolve())
    users: list[str] = []
    # One that cannot be read is begun anew.
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(read_file(path))
        users = [str(x) for x in found] if isinstance(found, list) else []
    if name not in users:
        users.append(name)
        write_text(path, json.dumps(users, indent=1) + "\n")
    return users.index(name) + 1
