"""Costs of trainings in the form of the paper's Table 7: pre-training, overall, method-specific, against FGFI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.costs import on_like_hardware
from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import GridRuns, mark_of, on_same_data, records_of, runs_of_grid
from analysis.load import Run, by_seed, gpu_hours, pretraining_hours
from analysis.render import MISSING, TextTable, marks_note, with_mark, with_unit
from analysis.stats.differences import paired_difference, paired_ratio
from analysis.table_builders.paper_scores import skipped_notes
from lgd.config.arms import Arm
from lgd.config.paper import MetricName, Training, paper
from lgd.results.record import Record

COLUMNS = ("method", "quantity", "unit", "reported", "measured", "seeds", "mark", "skipped")
HOURS: tuple[MetricName, ...] = ("pretraining_hours", "overall_hours", "method_hours")
"""The paper's columns, as lgd/config/paper.yaml names them."""


@dataclass(frozen=True)
class _Quantity:
    """A figure of one method: the paper's and ours. Hours ("h") of the paper are those of one of its devices."""

    name: str
    unit: str
    reported: float | None
    measured: float | None


def costs(runs: Sequence[Run], table: str = "table7") -> pd.DataFrame:
    """Costs of each method of Table 7, a row a method and quantity. Columns ``method``, ``quantity``, ``unit``,
    ``reported`` (the paper's, its hours times its GPUs), ``measured`` (ours, mean over ``seeds``), ``mark``,
    ``skipped``.

    Hours are device-hours of all phases. overall: with the whole pre-training of a teacher; "shared" ones count it
    divided by the runs that use it. method-specific: overall less the baseline's, paired by seed, over the seeds that
    both ran on like hardware, as each ratio is.
    """
    known, found = paper().tables[table], runs_of_grid(runs, table)
    reported = {(x.training, x.metric): x.value for x in known.cells}
    rows: list[dict[str, Any]] = []
    for arm, training in found.trainings:
        setting = found.setting(arm.name)
        ours = found.runs_of(arm.name, setting)
        for quantity in _quantities(found, arm, training, reported):
            scale = known.devices or 1 if quantity.unit == "h" else 1
            theirs = None if quantity.reported is None else quantity.reported * scale
            if theirs is None and quantity.measured is None and quantity.name != "overall":
                continue
            rows.append(
                {
                    "method": training.method_title,
                    "quantity": quantity.name,
                    "unit": quantity.unit,
                    "reported": theirs,
                    "measured": quantity.measured,
                    "seeds": len(ours),
                    "mark": mark_of(setting, ours) if quantity.measured is not None else None,
                    "skipped": arm.skipped or None,
                }
            )
    return typed_frame(rows, COLUMNS)


def _quantities(
    found: GridRuns, arm: Arm, training: Training, reported: Mapping[tuple[Training, MetricName], float | None]
) -> Iterator[_Quantity]:
    """The rows of one method."""
    setting = found.setting(arm.name)
    ours, is_baseline = found.runs_of(arm.name, setting), arm.name == arm.reference
    fgfi = next(x for _, x in found.trainings if x.method == "fgfi")
    records = records_of(ours)
    base, of_fgfi = (
        _on_like_hardware(records, records_of(on_same_data(ours, found.runs_of(x, setting))))
        for x in (arm.reference, fgfi.name)
    )
    overall = by_seed(records, gpu_hours)
    difference = None if is_baseline else paired_difference(overall, base)
    specific = difference.mean if difference else None
    ratio = paired_ratio(overall, base)
    pretraining, whole, own = (reported.get((training, x)) for x in HOURS)
    baseline, fgfi_own = reported.get((training.baseline, "overall_hours")), reported.get((fgfi, "method_hours"))
    yield _Quantity("pre-training", "h", pretraining, _mean(by_seed(records, _pretraining)))
    yield _Quantity("pre-training, shared", "h", None, _mean(by_seed(records, _pretraining_shared)))
    yield _Quantity("overall", "h", whole, _mean(overall))
    yield _Quantity("overall, shared", "h", None, _mean(by_seed(records, _overall_shared)))
    yield _Quantity("method-specific", "h", own, specific)
    yield _Quantity(
        "ratio to baseline",
        "x",
        whole / baseline if whole is not None and baseline else None,
        ratio.value if ratio else None,
    )
    if training.method == "fgfi" or is_baseline:
        return
    common = overall.keys() & base.keys() & of_fgfi.keys()
    mine = fmean(overall[x] - base[x] for x in common) if common else None
    theirs = fmean(of_fgfi[x] - base[x] for x in common) if common else None
    yield _Quantity("below FGFI's method-specific", "%", _percent_below(own, fgfi_own), _percent_below(mine, theirs))


def _on_like_hardware(ours: Mapping[int, Record], others: Mapping[int, Record]) -> Mapping[int, float]:
    """Hours of the others by seed, of those that ran on the hardware of ours: other hours do not compare."""
    return by_seed(on_like_hardware(ours, others)[1], gpu_hours)


def _pretraining(record: Record) -> float | None:
    return pretraining_hours(record) if record.pretraining and record.pretraining.hours_known else None


def _pretraining_shared(record: Record) -> float | None:
    return record.pretraining.amortised / 3600 if record.pretraining and record.pretraining.hours_known else None


def _overall_shared(record: Record) -> float | None:
    return record.gpu_hours + record.pretraining.amortised / 3600 if record.pretraining else None


def _percent_below(a: float | None, b: float | None) -> float | None:
    """How far ``a`` lies below ``b``, percent of ``b``; None for a ``b`` that is no cost."""
    return 100 * (1 - a / b) if a is not None and b is not None and b > 0 else None


def _mean(values: Mapping[int, float]) -> float | None:
    return fmean(values.values()) if values else None


def costs_text(frame: pd.DataFrame, table: str = "table7") -> TextTable:
    """:func:`costs` for people."""
    known = paper().tables[table]
    rows = [
        [
            row["method"],
            row["quantity"],
            with_unit(row["reported"], row["unit"]),
            with_mark(with_unit(row["measured"], row["unit"]), row["mark"]),
            str(row["seeds"] or MISSING),
        ]
        for row in row_dicts(frame)
    ]
    return TextTable(
        title=f"{known.title} ({known.location})",
        header=["method", "quantity", "paper", "ours", "seeds"],
        rows=rows,
        notes=[
            f"Hours are device-hours (GPUs, or processes where there is none), all phases. The paper's hours on"
            f" {known.hardware} are multiplied by {known.devices}; only ratios compare across hardware.",
            "pre-training: of the frozen teacher, whole in overall; shared: divided by the runs that use it.",
            f"The paper's trainings are taken to be {known.assumptions(known.trainings[0])}.",
            *marks_note(sorted({x for x in frame["mark"].dropna() if x})),
            *skipped_notes(frame),
        ],
        left=2,
    )
