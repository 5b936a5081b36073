"""Device-hours until an arm first is as good as its baseline in the end: what a method saves, or costs, on the way."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any

import pandas as pd

from analysis.costs import on_like_hardware
from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import reference_of
from analysis.load import Run, arm_of, identity, score, seed_of, teacher_seconds, training_device_seconds
from analysis.render import MISSING, TextTable, number, with_unit
from analysis.table_builders.frontier import data_set, hours_name, on_gpu
from lgd.config.experiment import Experiment
from lgd.results.record import Record

COLUMNS = ("arm", "data", "device", "target", "seeds", "reached", "hours", "ratio")

Points = list[tuple[float, float]]
"""(device-hours, AP) while training, hours rising."""

Group = tuple[str, str]
"""Preset and data, in which arms are compared."""


def points(record: Record) -> Points:
    """AP at each evaluation against the device-hours until then: all training steps of a frozen teacher, and its own.

    Evaluations are not counted, and every step counts alike. Of a record without evaluations the end alone.
    """
    seconds, before = training_device_seconds(record), teacher_seconds(record) / 3600
    steps = record.steps or record.experiment.schedule.steps
    if seconds is None:
        return []
    found = [
        (before + seconds * point.step / steps / 3600, point.student.AP)
        for point in record.evaluations
        if point.student.AP is not None
    ]
    final = score("AP")(record)
    if final is not None and (not record.evaluations or record.evaluations[-1].step < steps):
        found.append((before + seconds / 3600, final))
    return found


def hours_until(target: float, points: Points) -> float:
    """Device-hours until AP first is ``target``, linear between two evaluations; infinity where it never is.

    At the first evaluation already: the hours until that, since nothing is known before.
    """
    for i, (hours, ap) in enumerate(points):
        if ap >= target:
            if i == 0:
                return hours
            before, low = points[i - 1]
            return before + (hours - before) * (target - low) / (ap - low)
    return math.inf


def time_to_target(runs: Sequence[Run]) -> pd.DataFrame:
    """A row an arm, baselines first. Each seed's target is the AP of the baseline's same seed in the end. Columns:
    ``arm``, ``data``, ``device``, ``target`` (mean), ``seeds`` that both have, ``reached`` (seeds that got there),
    ``hours`` (median over the seeds, NA where half of them or more do not get there), ``ratio`` of that to the
    baseline's."""
    groups: dict[Group, dict[str, list[Record]]] = {}
    for record in (run.record for run in runs):
        if record.status == "finished" and score("AP")(record) is not None:
            arms = groups.setdefault((record.preset, data_set(record.experiment)), {})
            arms.setdefault(arm_of(record), []).append(record)
    rows = []
    for (_, data), arms in groups.items():
        for arm, records in sorted(arms.items(), key=lambda x: x[0] != reference_of(x[1][0])):
            for own in _trainings(records):
                baseline = _baseline(own[0], _trainings(arms.get(reference_of(own[0]), ())))
                if baseline:
                    rows.append(_row(arm, data, own, baseline))
    return typed_frame(rows, COLUMNS)


def _trainings(records: Iterable[Record]) -> list[list[Record]]:
    """An arm's records by what was trained: several sweeps may have given it other settings."""
    found: dict[Experiment, list[Record]] = {}
    for record in records:
        found.setdefault(identity(record.experiment), []).append(record)
    return list(found.values())


def _baseline(record: Record, trained: Sequence[Sequence[Record]]) -> Sequence[Record]:
    """That of the trainings that a record is compared with: of several, the one of the same settings but the method."""

    def setting(of: Record) -> Experiment:
        return identity(of.experiment).model_copy(update={"method": Experiment().method})

    return next((x for x in trained if len(trained) == 1 or setting(x[0]) == setting(record)), ())


def _row(arm: str, data: str, records: Sequence[Record], baseline: Sequence[Record]) -> dict[str, Any]:
    targets = {seed_of(record): ap for record in baseline if (ap := score("AP")(record)) is not None}
    common = [record for record in records if seed_of(record) in targets]
    hours = [hours_until(targets[seed_of(record)], points(record)) for record in common]
    middle = median(hours) if hours else math.inf
    pairs = on_like_hardware({seed_of(x): x for x in common}, {seed_of(x): x for x in baseline})
    ours, theirs = (
        median([hours_until(targets[seed], points(record)) for seed, record in side.items()] or [math.inf])
        for side in pairs
    )
    return {
        "arm": arm,
        "data": data,
        "device": "GPU" if all(map(on_gpu, records)) else "CPU",
        "target": fmean(targets.values()),
        "seeds": len(common),
        "reached": sum(map(math.isfinite, hours)),
        "hours": middle if math.isfinite(middle) else None,
        "ratio": ours / theirs if math.isfinite(ours) and 0 < theirs < math.inf else None,
    }


def _hours(hours: float | None, reached: float) -> str:
    if hours is None:
        return "median not reached" if reached else "not reached"
    return with_unit(hours, "h")


def time_to_target_text(frame: pd.DataFrame, *, pretraining: bool = True) -> TextTable:
    """:func:`time_to_target` for people. pretraining: its hours hold some teacher's."""
    teachers = " a teacher's pre-training included," if pretraining else ""
    several, hours = frame["data"].nunique() > 1, hours_name(frame["device"])
    rows = [
        [
            row["arm"],
            *([row["data"]] if several else []),
            number(row["target"]),
            f"{row['reached']:.0f} of {row['seeds']}",
            _hours(row["hours"], row["reached"]),
            MISSING if row["ratio"] is None else with_unit(row["ratio"], "x"),
        ]
        for row in row_dicts(frame)
    ]
    return TextTable(
        title="Time to the baseline's AP",
        header=["arm", *(["data"] if several else []), "target AP", "reached", hours, "of the baseline's"],
        rows=rows,
        notes=[
            f"{hours} of the training steps,{teachers} evaluations not included, until an arm first"
            " has the AP that its baseline of the same seed has in the end; median over seeds, linear between"
            " evaluations.",
            "As the learning rate decays AP jumps late in every training: a method that ends ahead may still reach the"
            " target late.",
        ],
        left=2 if several else 1,
        minor=("target AP",),
    )
