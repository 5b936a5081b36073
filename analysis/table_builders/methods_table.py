"""The grids ``methods`` and ``methods-by-cost`` as a table: what each method gains, what it costs, who taught it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, cast

import pandas as pd

from analysis.costs import cost_ratio
from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import as_shown, nearest_preset
from analysis.load import Run, arm_of, by_seed, check_data, finished, gpu_hours, score
from analysis.render import MISSING, TextTable, number, with_interval
from analysis.stats.differences import CONFIDENCE, paired_difference
from analysis.teachers import shared_teacher_note
from analysis.variants import Variant, variants
from lgd.config.arms import Arm, Grid
from lgd.config.grids import grid
from lgd.config.method import method_class
from lgd.config.methods_grid import DISTILL_WEIGHT, at_equal_cost
from lgd.config.paper import paper
from lgd.results.record import Pretraining, Record

COLUMNS = (
    *("arm", "reference", "seeds", "AP", "gain", "gain_low", "gain_high", "pairs", "gpu_hours", "overall_hours"),
    *("cost_ratio", "teacher", "teacher_AP", "teacher_hours", "gate", "inherit", "authors_inherit", "published"),
    "distill_weight",
    *("skipped", "ended"),
)

UNKNOWN = "not known"

MINOR = ("teacher", "by its authors", "inherited", "teacher's hours")
"""Columns that a narrow terminal leaves out, in this order."""


def methods_table(runs: Sequence[Run], name: str) -> pd.DataFrame:
    """A row an arm, in the grid's order, of the preset nearest to the paper's. Columns:

    - ``arm``, ``reference`` (text): and what it is compared with; ``seeds``: finished runs;
    - ``AP``: box AP, percent, mean; ``gain``, ``gain_low``, ``gain_high``: over the reference, paired by seed over
      ``pairs`` pairs, with the 95% t interval from two pairs on;
    - ``gpu_hours``: device-hours of all phases, mean; ``overall_hours``: with the whole training of its teacher;
      ``cost_ratio``: device-seconds of the training steps, a teacher's included, to the reference's, paired by seed;
    - ``teacher`` (text): backbone of what was trained before, or the file that was given; ``teacher_AP``: its box AP;
      ``teacher_hours``: device-hours of its training, NA where they are not known;
    - ``gate`` (text): ``passed``, or ``overruled`` where the teacher was not good enough; ``inherit`` (text): what of
      the student started from the teacher's weights, ``authors_inherit``: in the authors' own trainings;
    - ``published`` (text): what the authors report, of arms that are their method as it is;
    - ``distill_weight``: factor of the method's own weight of its distillation loss;
    - ``skipped``, ``ended`` (text): why an arm is not trained, or why none of its runs finished.
    """
    kept, _ = nearest_preset(runs) if runs else ([], [])
    own, rows = as_shown(grid(name), [run.record for run in kept]), list[dict[str, Any]]()
    for variant in variants(kept) or [Variant("", ())]:
        records = [run.record for run in variant.runs]
        check_data(records)
        by_arm = {arm.name: finished(records, variant.name(arm.name)) for arm in own.arms}
        ended = {arm_of(record): f"{record.status}: {record.reason}" for record in records}
        rows += [
            _row(own, arm, by_arm) | {"arm": variant.name(arm.name), "ended": ended.get(variant.name(arm.name))}
            for arm in own.arms
        ]
    return typed_frame([row | {"ended": None if row["seeds"] else row["ended"]} for row in rows], COLUMNS)


def _row(own: Grid, arm: Arm, by_arm: Mapping[str, Mapping[int, Record]]) -> dict[str, Any]:
    mine, reference = by_arm[arm.name], own.references[arm.name]
    theirs, compared = by_arm.get(reference, {}), arm.name != reference
    ap, hours = by_seed(mine, score("AP")), by_seed(mine, gpu_hours)
    gain = paired_difference(ap, by_seed(theirs, score("AP"))) if compared else None
    ratio = cost_ratio(mine, theirs)
    method = method_class(str(arm.changes["method.name"]))
    last = next(iter(mine.values()), None)
    is_whole = arm.name in (method.title, at_equal_cost(method.title))
    published = paper().published_of(str(arm.changes["method.name"])) if is_whole else ()
    return {
        "arm": arm.name,
        "reference": reference if compared else None,
        "seeds": len(mine),
        "AP": _mean(ap.values()),
        "gain": gain and gain.mean,
        "gain_low": gain and gain.low,
        "gain_high": gain and gain.high,
        "pairs": gain.n if gain else None,
        "gpu_hours": _mean(x.gpu_hours for x in mine.values()),
        "overall_hours": _mean(hours.values()),
        "cost_ratio": ratio and ratio.value,
        **_of_teacher(last),
        "inherit": getattr(last.experiment.method, "inherit", None) if last else None,
        "authors_inherit": getattr(method, "authors_inherit", None),
        "published": "; ".join(map(str, published)) or None,
        "distill_weight": getattr(last.experiment.method, "distill_weight", None) if last else None,
        "skipped": arm.skipped or None,
    }


def _of_teacher(record: Record | None) -> dict[str, Any]:
    teacher: Pretraining | None = record.pretraining if record else None
    if teacher is None:
        return {"teacher": None, "teacher_AP": None, "teacher_hours": None, "gate": None}
    return {
        "teacher": teacher.label,
        "teacher_AP": teacher.AP,
        "teacher_hours": teacher.full / 3600 if teacher.hours_known else None,
        "gate": teacher.gate or None,
    }


def _mean(values: Any) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def methods_text(runs: Sequence[Run], name: str, frame: pd.DataFrame) -> TextTable:
    """:func:`methods_table` for people, without the arms that were not asked for."""
    rows = []
    hours = [x["overall_hours"] for x in row_dicts(frame) if x["overall_hours"] is not None]
    digits = 2 if max(hours, default=1) >= 1 else 3
    for row in (x for x in row_dicts(frame) if not runs or x["seeds"] or x["ended"] or x["skipped"]):
        known = row["teacher"] is not None
        rows.append(
            [
                row["arm"],
                str(row["seeds"] or MISSING),
                number(row["AP"]),
                with_interval(row["gain"], row["gain_low"], row["gain_high"]),
                number(row["gpu_hours"], digits),
                number(row["overall_hours"], digits),
                MISSING if row["cost_ratio"] is None else f"{row['cost_ratio']:.2f}x",
                row["teacher"] or MISSING,
                number(row["teacher_AP"]),
                UNKNOWN if known and row["teacher_hours"] is None else number(row["teacher_hours"], digits),
                _inherits(row["inherit"]),
                _inherits(row["authors_inherit"]),
            ]
        )
    header = [
        *("method", "seeds", "AP", "gain", "hours", "with teacher", "cost", "teacher", "teacher's AP"),
        *("teacher's hours", "inherited", "by its authors"),
    ]
    return TextTable(grid(name).title, header, rows, _notes(runs, name, frame), minor=MINOR)


def _inherits(what: str | None) -> str:
    return {None: MISSING, "none": "no", "fpn": "FPN", "fpn_and_head": "FPN, head"}.get(what, cast(str, what))


def _notes(runs: Sequence[Run], name: str, frame: pd.DataFrame) -> list[str]:
    own, (kept, others) = grid(name), nearest_preset(runs) if runs else ([], [])
    references = ", ".join(dict.fromkeys(own.references[arm.name] for arm in own.arms))
    notes = [
        f"gain: AP over that of {references}, paired by seed, with the two-sided {CONFIDENCE:.0%} Student t interval"
        " from two seeds on (each for itself, not corrected for their number).",
        "hours: device-hours (GPUs, or processes where there is none), all phases; with teacher: the whole training of"
        " what must be trained before, as if no other run shared it; cost: device-seconds of the training steps, a"
        " teacher's included, over the baseline's.",
        "inherited: what of the student starts from the teacher's weights here, and in the authors' own trainings.",
    ]
    if kept:
        notes += [f"Preset {kept[0].record.preset}.", *shared_teacher_note([run.record for run in kept])]
    if others:
        notes.append(f"Left out: runs of preset {' / '.join(others)}.")
    weights = [f"{x['arm']} {x['distill_weight']:g}" for x in row_dicts(frame) if x["distill_weight"] not in (None, 1)]
    if weights:
        notes.append(
            f"Distillation losses at a part of their methods' own weight (grid {DISTILL_WEIGHT}): {', '.join(weights)}."
        )
    for row in row_dicts(frame):
        if row["gate"] == "overruled":
            notes.append(f"{row['arm']}: its teacher was not better than the plain student (method.teacher.gate=off).")
        if row["ended"]:
            notes.append(f"{row['arm']}: {row['ended']}.")
        if row["skipped"]:
            notes.append(f"Skipped: {row['arm']}: {row['skipped']}.")
        if row["published"] and not str(row["arm"]).endswith("at equal cost"):
            notes.append(f"{row['arm']}'s authors report, on MS-COCO with other teachers: {row['published']}.")
    return notes
