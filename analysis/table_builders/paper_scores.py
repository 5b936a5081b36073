"""The paper's tables of scores side by side with ours: rows that say where each number comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import GridRuns, mark_of, on_same_data, records_of, runs_of_grid
from analysis.image_intervals import MatchedDetections
from analysis.load import Run, by_seed, measured, score_of
from analysis.render import (
    MISSING,
    TextTable,
    image_interval_note,
    interval,
    number,
    signed,
    with_interval,
    with_mark,
)
from analysis.stats.differences import CONFIDENCE, Difference, paired_difference
from lgd.config.arms import Arm
from lgd.config.paper import SCORES, ScoreName, Training, paper
from lgd.results.record import Record

COLUMNS = (
    *("setting", "method", "metric", "reported", "reported_where", "reproduced", "difference", "seeds", "mark"),
    *("reported_gain", "gain", "gain_low", "gain_high", "pairs", "image_low", "image_high", "skipped"),
)

VOC_FIELDS: dict[ScoreName, str] = {"box_AP": "VOC_AP", "box_AP50": "VOC", "box_AP75": "VOC75"}
"""Fields of Scores that Table 8 is filled from: the authors' code scores with detectron2's evaluator of Pascal VOC."""

COCO_AP = "COCO's AP"
"""Marks a cell of Table 8 from records of before VOC's own AP was kept."""


def comparison(runs: Sequence[Run], table: str, *, resamples: int = 1000) -> pd.DataFrame:
    """A table of the paper, a row an arm and metric, in the paper's order. Columns:

    - ``setting``, ``method`` (text), ``metric`` (a key of paper.yaml's metrics; percent);
    - ``reported``: the paper's number; ``reported_where``: where it stands, if not in this table;
    - ``reproduced``: our mean over ``seeds`` finished runs; ``difference``: to the paper's, for its preset alone;
    - ``mark``: what the runs are, if not the paper's setting (a preset's name, "changed" for one with overrides), and
      COCO_AP where that is not what the paper reports;
    - ``reported_gain``: the paper's, over the setting's baseline; ``gain``, ``gain_low``, ``gain_high``: ours, paired
      by seed over ``pairs`` pairs, with its 95% t interval from two pairs on;
    - ``image_low``, ``image_high``: 95% bootstrap interval of the gain over images, where detections are kept
      (``resamples`` draws), box AP alone;
    - ``skipped``: why an arm is not run.

    NA where there is nothing to say. A gain is a difference of scores: for mMR, lower is better.
    """
    found = runs_of_grid(runs, table)
    metrics = [x for x in paper().tables[table].metrics if x in SCORES]
    if "mMR" in metrics:
        # Data that stands in for CrowdHuman is scored with AP alone.
        metrics.append("box_AP")
    matches = MatchedDetections()
    rows = [
        _row(table, found, arm, training, metric, matches, resamples)
        for arm, training in found.trainings
        for metric in metrics
    ]
    return typed_frame(rows, COLUMNS)


def _row(
    table: str,
    found: GridRuns,
    arm: Arm,
    training: Training,
    metric: ScoreName,
    matches: MatchedDetections,
    resamples: int,
) -> dict[str, Any]:
    setting = found.setting(arm.name)
    ours, base = found.runs_of(arm.name, setting), found.runs_of(arm.reference, setting)
    voc, score_mark = _voc_field(training, metric, [*records_of(ours).values(), *records_of(base).values()])
    value_of = _student(voc) if voc else measured(metric)
    values = by_seed(records_of(ours), value_of)
    mean = fmean(values.values()) if values else None
    reported, where = _reported(table, training, metric)
    of_baseline, _ = _reported(table, training.baseline, metric)
    is_baseline = arm.name == arm.reference
    baseline_values = by_seed(records_of(on_same_data(ours, base)), value_of)
    gain = None if is_baseline else paired_difference(values, baseline_values)
    # The interval is of COCO's AP.
    images = matches.interval(ours, base, resamples) if gain and metric == "box_AP" and not voc else None
    in_paper_setting = setting is not None and not setting.label and not score_mark
    return {
        "setting": training.setting,
        "method": training.method_title,
        "metric": metric,
        "reported": reported,
        "reported_where": where,
        "reproduced": mean,
        "difference": mean - reported if mean is not None and reported is not None and in_paper_setting else None,
        "seeds": len(values),
        "mark": "; ".join(x for x in (mark_of(setting, ours), score_mark) if x) if values else None,
        "reported_gain": None if is_baseline or reported is None or of_baseline is None else reported - of_baseline,
        **gain_columns(gain),
        "pairs": gain.n if gain else None,
        "image_low": images and images[0],
        "image_high": images and images[1],
        "skipped": arm.skipped or None,
    }


def _voc_field(training: Training, metric: ScoreName, records: Sequence[Record]) -> tuple[str, str]:
    """The field of Pascal VOC's own score, "" where it is not asked for, or these records lack it, and COCO_AP then."""
    field = VOC_FIELDS.get(metric, "") if training.data == "voc" else ""
    # Synthetic images in its place are scored with COCO's AP alone.
    if not field or not any(x.experiment.data.source.startswith("voc") for x in records):
        return "", ""
    return ("", COCO_AP) if any(score_of(x.student, field) is None for x in records) else (field, "")


def _student(field: str) -> Callable[[Record], float | None]:
    return lambda record: score_of(record.student, field)


def _reported(table: str, training: Training, metric: ScoreName) -> tuple[float | None, str | None]:
    """The paper's number, and where it stands if not in this table."""
    value = paper().tables[table].value(training, metric)
    if value is None:
        elsewhere = paper().first_value(training, metric, exclude_tables=[table])
        return elsewhere or (None, None)
    return value, None


def gain_columns(gain: Difference | None) -> dict[str, float | None]:
    if gain is None:
        return {"gain": None, "gain_low": None, "gain_high": None}
    return {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}


def comparison_text(table: str, frame: pd.DataFrame) -> TextTable:
    """:func:`comparison` for people."""
    known = paper()
    several = frame["metric"].nunique() > 1
    rows = [
        [
            row["setting"],
            row["method"],
            *([known.metrics[row["metric"]].title] if several else []),
            f"{number(row['reported'])}{' *' if row['reported_where'] else ''}",
            with_mark(number(row["reproduced"]), row["mark"]),
            signed(row["difference"]),
            str(row["seeds"] or MISSING),
            signed(row["reported_gain"]),
            with_mark(with_interval(row["gain"], row["gain_low"], row["gain_high"]), row["mark"]),
            interval(row["image_low"], row["image_high"]),
        ]
        for row in row_dicts(frame)
    ]
    header = [
        *("training", "method", *(["metric"] if several else [])),
        *("paper", "ours", "ours - paper", "seeds"),
        *("gain: paper", "gain: ours", "over images"),
    ]
    return TextTable(
        title=f"{known.tables[table].title} ({known.tables[table].location})",
        header=header,
        rows=rows,
        notes=_notes(table, frame),
        left=3 if several else 2,
        minor=("over images", "seeds", "ours - paper"),
    )


def _notes(table: str, frame: pd.DataFrame) -> list[str]:
    known = paper().tables[table]
    places, marks = (sorted({x for x in frame[name].dropna() if x}) for name in ("reported_where", "mark"))
    notes = [f"paper: {paper().title}, from {paper().sources[known.source]}; {MISSING}: no run, or no number known."]
    if places:
        notes.append(f"* the paper's number from elsewhere: {', '.join(places)}.")
    if marks:
        notes.append(
            f"Marked ({'), ('.join(marks)}): not the paper's setting, so not a reproduction; no difference is taken."
        )
    if known.assumed:
        given = ", ".join(dict.fromkeys(known.assumptions(x) for x in known.trainings))
        notes.append(f"Not said there of {' and '.join(known.assumed)}; taken: {given}.")
    notes += _elsewhere(table)
    data = {x.data for x in known.trainings} - {"coco"}
    if data and {x.split(",")[0] for x in marks} & {"tiny", "small"}:
        notes.append("Synthetic images stand in for the data set, which are scored with COCO's AP alone.")
    if "voc" in data:
        notes.append("AP is Pascal VOC's own, of eleven points, mean over IoUs 0.5 to 0.95; AP50 and AP75 likewise.")
    if any(COCO_AP in x for x in marks):
        notes.append(f"{COCO_AP}: of 101 points, for the records are of before VOC's own was kept.")
    if "mMR" in set(frame["metric"]):
        notes.append("mMR: lower is better, and so is a gain below zero.")
    if frame["pairs"].notna().any():
        notes.append(
            f"gain: over the baseline of the same setting, paired by seed, with the two-sided {CONFIDENCE:.0%} Student"
            " t interval from two seeds on (each for itself, not corrected for their number);"
            " one seed says nothing about the spread between seeds."
        )
    if frame["image_low"].notna().any():
        notes.append(image_interval_note("our gain"))
    return [*notes, *skipped_notes(frame)]


def _elsewhere(table: str) -> list[str]:
    """The paper's numbers of the same trainings where another place has others, such as the authors' repetition."""
    known = paper()
    found = [
        f"{cell.training.name} {known.metrics[cell.metric].title} {other:.1f} ({place.location})"
        for cell in known.tables[table].cells
        for name, place in known.tables.items()
        if name != table and cell.value is not None and cell.metric in SCORES
        if (other := place.value(cell.training, cell.metric)) not in (None, cell.value)
    ]
    return [f"Reported elsewhere: {', '.join(found)}."] if found else []


def skipped_notes(frame: pd.DataFrame) -> list[str]:
    """Which methods are not run, and why."""
    skipped = frame[["method", "skipped"]].dropna().drop_duplicates()
    return [f"Skipped: {x.method} {x.skipped}." for x in skipped.itertuples()]
