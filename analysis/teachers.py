"""Teachers beside their students: is there anything to learn from them?"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from analysis.load import arm_of, by_arm, by_seed, finished, score, teacher_ap
from analysis.render import MISSING, TextTable, listed, number, signed
from lgd.config.detector import NO_WEIGHTS, TIMM
from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import FrozenTeacherMethod
from lgd.results.record import EvaluationPoint, Record

NEVER = "†"
"""Marks the teacher's AP of an arm whose teacher never got better than its student."""


class FrozenTeacher(NamedTuple):
    """What a student imitates, and how strongly."""

    backbone: str
    start: str
    """What its weights are at first: ``ImageNet``, ``trained detector``, or "" for random ones."""
    weight: float
    """Factor of the method's own distillation loss."""

    def __str__(self) -> str:
        """``tf_efficientnet_lite2, ImageNet, weight 0.01``."""
        of = [self.backbone.removeprefix(TIMM), *([self.start] if self.start else [])]
        return ", ".join([*of, *([f"weight {self.weight:g}"] if self.weight != 1 else [])])


def frozen_teacher(experiment: Experiment) -> FrozenTeacher | None:
    """None where none is trained before, or where that is not a detector that is frozen then."""
    teacher, method = experiment.teacher, experiment.method
    if teacher is None or not isinstance(method, FrozenTeacherMethod):
        return None
    detector = teacher.detector
    start = "" if detector.initial_weights == NO_WEIGHTS else "ImageNet"
    if detector.is_pretrained or not detector.is_built_in:
        start = "trained detector" if start else ""
    return FrozenTeacher(detector.backbone_label or detector.label, start, method.distill_weight)


def arms_with_teacher(records: Sequence[Record]) -> list[str]:
    """The arms whose teacher was watched or evaluated, in the order of their records."""
    return list(
        dict.fromkeys(
            arm_of(x)
            for x in records
            if x.status == "finished" and (teacher_ap(x) is not None or x.teacher_beat_student is not None)
        )
    )


def never_ahead(records: Sequence[Record], arm: str) -> bool:
    """Whether no run of ``arm`` that tells had a teacher that was ever better than its student."""
    return arm in arms_never_ahead(records)


def arms_never_ahead(records: Sequence[Record]) -> list[str]:
    """The arms of which that is so."""
    was_ahead: dict[str, bool] = {}
    for record in records:
        ahead = record.teacher_beat_student if record.status == "finished" else None
        if ahead is not None:
            was_ahead[arm_of(record)] = was_ahead.get(arm_of(record), False) or ahead
    return [arm for arm, ahead in was_ahead.items() if not ahead]


def teacher_notes(records: Sequence[Record], arms: Sequence[str]) -> list[str]:
    """A line on the arms whose teacher never got better than its student; none where there is no such arm."""
    found = set(arms_never_ahead(records))
    never = [arm for arm in arms if arm in found]
    if not never:
        return []
    which = "this arm says" if len(never) == 1 else "these arms say"
    return [
        f"{NEVER} The teacher never beat the student in {listed(never)}: {which} nothing for or against the method"
        " at full length."
    ]


def shared_teacher_note(records: Sequence[Record]) -> list[str]:
    """A line on the arms whose seeds all have one frozen teacher; none where there is no such arm."""
    teachers: dict[str, list[str]] = {}
    for record in records:
        if record.status == "finished" and record.pretraining:
            teachers.setdefault(arm_of(record), []).append(record.pretraining.fingerprint)
    shared = [arm for arm, each in teachers.items() if len(each) > 1 and len(set(each)) == 1]
    if not shared:
        return []
    return [f"One teacher for all seeds, so no interval holds what another teacher would change: {listed(shared)}."]


def teachers_text(records: Sequence[Record]) -> TextTable | None:
    """AP of teacher and student in the end, and what the teacher makes of its labels; None without a teacher."""
    arms = arms_with_teacher(records)
    if not arms:
        return None
    rows, records_of = [], by_arm(records)
    told_by_loss = [x for x in records if x.teacher_beat_student is not None and not x.teacher_was_scored]
    by_loss = " (in its detection loss, where none has its AP)" if told_by_loss else ""
    for arm in arms:
        runs = finished(records_of[arm], arm)
        own, of_teacher = by_seed(runs, score("AP")), by_seed(runs, teacher_ap)
        lead = [of_teacher[seed] - own[seed] for seed in of_teacher if seed in own]
        beats = [x.teacher_beat_student for x in runs.values() if x.teacher_beat_student is not None]
        last = [x.evaluations[-1] for x in runs.values() if x.evaluations]
        rows.append(
            [
                arm,
                str(len(runs)),
                number(fmean(own.values())) if own else MISSING,
                number(fmean(of_teacher.values())) if of_teacher else MISSING,
                signed(fmean(lead)) if lead else MISSING,
                f"{sum(beats)} of {len(beats)}" if beats else MISSING,
                _mean(last, "attention"),
                _mean(last, "label_use"),
            ]
        )
    return TextTable(
        title="Teachers and their students",
        header=["arm", "seeds", "AP", "teacher AP", "lead", "ever ahead", "own label", "label use"],
        rows=rows,
        notes=[
            "lead: the teacher's AP over its student's in the end. ever ahead: seeds in which the teacher was better at"
            f" any evaluation{by_loss}. own label: how much an object attends to its own label, 0 (to all alike) to 1."
            " label use: how far the teacher's features follow the objects' classes, from 0, not at all, to the square"
            " root of 2 at most.",
            *teacher_notes(records, arms),
        ],
    )


def _mean(points: Sequence[EvaluationPoint], name: str) -> str:
    values = [x for point in points if (x := getattr(point, name)) is not None]
    return number(fmean(values), 2) if values else MISSING
