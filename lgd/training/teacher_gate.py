"""Is a frozen teacher worth learning from? It is asked before a student trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from lgd.config.experiment import DATA_SET_KEYS, Data, Experiment
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.config.settings import keys_without_effect_on_result
from lgd.errors import InputError
from lgd.results.record import FILE, Pretraining, Record, load


class TeacherGateError(InputError):
    """The teacher is not good enough for its student to be trained."""


def check_teacher(experiment: Experiment, teacher: Pretraining, plain: float | None) -> Pretraining:
    """``teacher`` with the outcome of the check. plain: box AP of the plain student, None where it is not known.

    A teacher has to be better than the plain student, where the method needs that, or else reach
    ``method.teacher.floor``. Raises TeacherGateError, a line with both numbers, where it does not and
    ``method.teacher.gate`` is on.
    """
    method = experiment.method
    if not isinstance(method, FrozenTeacherMethod):
        return teacher
    if not method.teacher_must_lead:
        plain = None
    reached, floor = teacher.AP, method.teacher.floor
    good = reached is not None and (reached > plain if plain is not None else reached >= floor)
    if not good and method.teacher.gate:
        ap = "unknown (its classes are not this data's)" if reached is None else f"{reached:.1f}"
        needed = f"no more than the plain student's {plain:.1f}" if plain is not None else f"below the floor {floor:g}"
        raise TeacherGateError(
            f"the teacher's AP is {ap}{f', {needed}' if reached is not None else ''}: no student is trained from it;"
            " method.teacher.gate=off trains one anyway"
        )
    return teacher.model_copy(update={"plain_AP": plain, "gate": "passed" if good else "overruled"})


def plain_students_ap(experiment: Experiment, data: str, directory: Path) -> float | None:
    """Box AP of the plain student: mean of the baselines beside ``directory`` that finished so far; None without one.

    data: fingerprint of the data set. They are those of the same detector on the same images, used the same way, and
    with the same schedule. Where none has that, they are those of its learning rate, if any, and of the greatest length
    up to its own, which its plain student would at least reach, or else of the least; of several schedules the last one
    finished.
    """
    known = [x for x in _baselines(directory.parent) if _is_plain_student(x, experiment, data)]
    if not known:
        return None
    schedule = max(known, key=lambda x: _nearness(x, experiment)).experiment.schedule
    alike = [x.student.AP for x in known if x.student and x.experiment.schedule == schedule]
    return fmean(ap for ap in alike if ap is not None)


def _nearness(record: Record, experiment: Experiment) -> tuple[bool, bool, bool, int, str]:
    """Greater for what is nearer to a plain student of the experiment."""
    there, own = record.experiment.schedule, experiment.schedule
    same_rate, shorter = there.resolved_lr == own.resolved_lr, there.steps <= own.steps
    return there == own, same_rate, shorter, there.steps if shorter else -there.steps, record.finished


def _baselines(directory: Path) -> Iterator[Record]:
    for path in sorted(directory.glob(f"*/{FILE}")):
        # Of a record that cannot be read nothing is known.
        with suppress(InputError):
            record = load(path)
            is_baseline = record.status == "finished" and record.experiment.method.name == "baseline"
            if is_baseline and record.student and record.student.AP is not None:
                yield record


def _is_plain_student(record: Record, experiment: Experiment, data: str) -> bool:
    there = record.experiment
    return (
        there.detector == experiment.detector
        and there.precision == experiment.precision
        and _use(there.data) == _use(experiment.data)
        and record.data.get("fingerprint", data) == data
    )


def _use(data: Data) -> dict[str, Any]:
    """How many of the images are used, and their sizes; not which they are, which the fingerprint tells."""
    return data.model_dump(exclude={*DATA_SET_KEYS, *keys_without_effect_on_result(Data)})
