"""The page of one study: ``README.md`` in its results directory, wholly from its records."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import pandas as pd

from analysis.commands import training_command
from analysis.evidence.studies import AP, NOTES, Family, Study, Value, write_tables
from analysis.evidence.sweep_page import draw_sweep, sweep_page
from analysis.frame import row_dicts
from analysis.load import Run, arm_of, cost_seconds, score, teacher_ap, training_device_seconds
from analysis.noise_floor import noise_floor, noise_floor_text, sentences
from analysis.plots.arms import arms_figure
from analysis.plots.scores import curves
from analysis.plots.style import STYLE, save
from analysis.render import MISSING, TextTable, number, with_interval, with_unit
from analysis.stats.differences import Difference, paired_difference
from analysis.table_builders.arms import arms_text, notes
from analysis.table_builders.sweep_table import sweep_of
from analysis.templating import render
from lgd.config.grids import EVIDENCE, NOISE_FLOOR
from lgd.files import write_text
from lgd.results.record import EvaluationPoint, Record
from lgd.results.sweep_spec import SWEEP_FILE, SweepSpec

PAGE = "README.md"


def study_page(study: Study, comparisons: pd.DataFrame) -> str:
    """The page's text, which shows the figures of :func:`draw_study`.

    comparisons: rows of :func:`analysis.evidence.studies.comparisons` of this study.
    """
    if study.grid.name not in (EVIDENCE, NOISE_FLOOR.name):
        return sweep_page(study, comparisons)
    is_floor = study.grid.name == NOISE_FLOOR.name
    records, written = study.records, study.directory / NOTES
    by_family = {x.baseline: notes(_records_of(study, x), [a.name for a in x.arms], x.baseline) for x in study.families}
    common = [line for line in next(iter(by_family.values())) if all(line in x for x in by_family.values())]
    first = records[0]
    return render(
        "noise_floor.md.j2" if is_floor else "study.md.j2",
        study=study,
        first=first,
        at_papers_size=first.preset == "paper" and study.on_gpu,
        batches=sorted({r.experiment.schedule.batch for r in records}),
        command=_command(study),
        notes=common,
        dates=sorted(x for r in records for x in (r.started, r.finished) if x),
        not_run=sweep_of(study.directory, records).not_run,
        families=[
            _family(study, x, [line for line in by_family[x.baseline] if line not in common])
            for x in study.families
            if not is_floor
        ],
        comparisons=row_dicts(comparisons),
        equal_time=_equal_time(study, row_dicts(comparisons)),
        floor=noise_floor_text(noise_floor(study.runs)) if is_floor else None,
        spread=sentences(noise_floor(study.runs)) if is_floor else [],
        shared_teacher=any(arm_of(r).endswith("FGFI") for r in records),
        reading=written.read_text(encoding="utf-8").strip() if written.exists() else "",
    )


def _command(study: Study) -> str:
    """With the preset's name of today."""
    written = SweepSpec.read(study.directory).preset if (study.directory / SWEEP_FILE).exists() else study.preset
    command = training_command(study.directory, shlex.quote(f"results/{study.name}"))
    return command.replace(f"--preset {written} ", f"--preset {study.preset} ", 1)


def _records_of(study: Study, family: Family) -> list[Record]:
    names = {arm.name for arm in family.arms}
    return [record for record in study.records if arm_of(record) in names]


def draw_study(study: Study) -> list[Path]:
    """The study's figures, of each detector where it has several, drawn into its directory; their paths."""
    if study.grid.name not in (EVIDENCE, NOISE_FLOOR.name):
        return draw_sweep(study)
    paths = []
    for family in study.families if study.grid.name != NOISE_FLOOR.name else []:
        names, stem = [arm.name for arm in family.arms], study.directory / _stem(family)
        paths += arms_figure(_records_of(study, family), names, family.baseline, stem.with_name(f"{stem.name}-arms"))
        if _has_curves(study, family):
            runs: list[Run] = [run for name in names for run in study.runs if arm_of(run.record) == name]
            with mpl.rc_context(STYLE):
                figure = curves(runs)
                if figure is not None:
                    paths += save(figure, stem.with_name(f"{stem.name}-curves"))
    return paths


def _stem(family: Family) -> str:
    return family.detector.lower().replace(" ", "-")


def _has_curves(study: Study, family: Family) -> bool:
    return any(len(r.evaluations) > 1 for r in _records_of(study, family) if r.status == "finished")


def _family(study: Study, family: Family, own_notes: Sequence[str]) -> dict[str, Any]:
    """Tables and figures of one detector."""
    names, records = [arm.name for arm in family.arms], _records_of(study, family)
    baseline = study.finished(family.baseline).values()
    return {
        "detector": family.detector,
        "arms": replace(arms_text(records, names, family.baseline), notes=list(own_notes)),
        "details": _details(study, family),
        "stem": _stem(family),
        "has_curves": _has_curves(study, family),
        "while_training": _while_training(study, family),
        "last_rise": study.mean(family.baseline, last_rise),
        "last_steps": sorted(
            {(r.evaluations[-2].step, r.evaluations[-1].step) for r in baseline if len(r.evaluations) > 1}
        ),
    }


# ------------------------------------------------------------------------------------------ what is measured


def own_loss(record: Record) -> float | None:
    """The student's detection losses at the end of the training, summed: mean over the last fifth of their curves."""
    own = [x for name, x in record.losses.items() if name not in ("total_loss", "loss_distill") and "/" not in name]
    if not own or not all(own):
        return None
    return sum(fmean(value for _, value in curve[-max(len(curve) // 5, 1) :]) for curve in own)


def last_rise(record: Record) -> float | None:
    """Rise of the AP between the last two evaluations, points."""
    points = [x.student.AP for x in record.evaluations if x.student.AP is not None]
    return points[-1] - points[-2] if len(points) > 1 else None


@dataclass(frozen=True)
class TeacherMeasure:
    """A measurement of a teacher besides its scores, by its name in tables; study.md.j2 says what it means."""

    name: str
    of: Callable[[EvaluationPoint], float | None]

    def at_the_end(self, record: Record) -> float | None:
        return self.of(record.evaluations[-1]) if record.evaluations else None


TEACHER_MEASURES = (
    TeacherMeasure("attention to the own label", lambda x: x.attention),
    TeacherMeasure("label use", lambda x: x.label_use),
)
"""Each is a column of the table of what was measured at the end, and a row of the one of the training's course."""


def _details(study: Study, family: Family) -> TextTable:
    """What the table of arms leaves out: the other scores, LGD whole as the reference, and device-seconds."""
    columns = [x for x in TEACHER_MEASURES if any(study.mean(a.name, x.at_the_end) is not None for a in family.arms)]
    rows = []
    for arm in (x.name for x in family.arms):
        is_baseline = arm == family.baseline
        ratio = study.cost(arm, family.baseline)
        gains = [study.difference(arm, family.baseline, score(x)) for x in ("AP50", "AP75")]
        to_lgd = None if is_baseline or arm == family.lgd else study.difference(arm, family.lgd)
        teacher = paired_difference(study.values(arm, teacher_ap), study.values(arm, AP))
        loss = None if is_baseline else study.difference(arm, family.baseline, own_loss)
        rows.append(
            [
                arm,
                *(MISSING if is_baseline else difference_text(x) for x in gains),
                difference_text(to_lgd),
                difference_text(teacher),
                difference_text(loss, 3),
                *(_mean_text(study, arm, x.at_the_end) for x in columns),
                with_unit(study.mean(arm, cost_seconds), "s"),
                with_unit(ratio.value if ratio else None, "x"),
            ]
        )
    header = [
        *("arm", "AP50 over baseline", "AP75 over baseline", "AP over LGD", "teacher AP over the student's"),
        *("own losses over baseline", *(x.name for x in columns), "device-s", "times the baseline's"),
    ]
    return TextTable("", header, rows)


def difference_text(found: Difference | None, digits: int = 1) -> str:
    return MISSING if found is None else with_interval(found.mean, found.low, found.high, digits)


def _mean_text(study: Study, arm: str, value: Value) -> str:
    """The mean, and over how many seeds where others lack it: it may be younger than their records."""
    found, of_all = study.values(arm, value), len(study.finished(arm))
    if not found:
        return MISSING
    mean = f"{fmean(found.values()):.2f}"
    return f"{mean} ({len(found)} of {of_all} seeds)" if len(found) < of_all else mean


COURSE: tuple[tuple[str, Callable[[EvaluationPoint], float | None], int], ...] = (
    ("", lambda x: x.student.AP, 1),
    (": its teacher", lambda x: x.teacher.AP if x.teacher else None, 1),
    *((f": {x.name}", x.of, 2) for x in TEACHER_MEASURES),
)
"""Rows of the table of a training's course: what follows the arm's name, the value, its decimals."""


def _while_training(study: Study, family: Family) -> TextTable | None:
    """AP and the teacher's measures at the steps of the curves, means over the seeds that have them; None without.

    Arms in equal time are left out: their steps are others.
    """
    found: dict[str, dict[int, str]] = {}
    for arm in (x for x in family.arms if not x.time_budget_from):
        records = study.finished(arm.name).values()
        points = [point for record in records if len(record.evaluations) > 1 for point in record.evaluations]
        for suffix, value, digits in COURSE:
            by_step: dict[int, list[float]] = {}
            for point in points:
                x = value(point)
                if x is not None:
                    by_step.setdefault(point.step, []).append(x)
            if by_step:
                found[arm.name + suffix] = {step: f"{fmean(xs):.{digits}f}" for step, xs in by_step.items()}
    if not found:
        return None
    steps = sorted({step for row in found.values() for step in row})
    rows = [[name, *(row.get(step, MISSING) for step in steps)] for name, row in found.items()]
    return TextTable("", ["mean over seeds, after step", *map(str, steps)], rows)


def _equal_time(study: Study, comparisons: Sequence[dict[str, Any]]) -> TextTable | None:
    """None where no arm was trained in equal time."""
    rows = []
    for row in (x for x in comparisons if x["kind"] == "equal time"):
        arm, lgd = row["other"], row["arm"]
        longer = next(x for x in comparisons if x["kind"] == "longer" and x["arm"] == arm)
        steps = sorted({r.experiment.schedule.steps for r in study.finished(arm).values()})
        rows.append(
            [
                longer["other"],
                " / ".join(map(str, steps)) or MISSING,
                *(with_unit(study.mean(x, training_device_seconds), "s") for x in (arm, lgd)),
                *(number(x) for x in (row["other_AP"], row["AP"])),
                *(with_interval(x["gain"], x["gain_low"], x["gain_high"]) for x in (row, longer)),
            ]
        )
    if not rows:
        return None
    header = [
        *("arm in LGD's time", "its steps", "device-s", "LGD's", "AP", "LGD's"),
        *("LGD over it", "it over itself after the shared steps"),
    ]
    return TextTable("", header, rows)


def write_study_page(study: Study, comparisons: pd.DataFrame) -> list[Path]:
    """Write the page, its tables and its figures into the study's directory; their paths."""
    path = study.directory / PAGE
    write_text(path, study_page(study, comparisons))
    return [path, *write_tables(study.directory, study.runs), *draw_study(study)]
