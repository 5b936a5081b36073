"""The table of methods over several data sets or detectors (analysis/verdicts/across.py)."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.frame import row_dicts
from analysis.load import Run
from analysis.render import TextTable, number, with_interval
from analysis.stats.differences import CONFIDENCE
from analysis.verdicts.across import Interval, gains, methods, mixed, probability
from lgd.errors import InputError

_ENDS = ("", "_low", "_high")

COLUMNS = ("method", "tasks", "runs", *(f"{x}{end}" for x in ("gain", "improvement") for end in _ENDS))


def across_table(runs: Sequence[Run]) -> pd.DataFrame:
    """A row a method that was trained on several tasks. Columns: ``method``, ``tasks``, ``runs``; ``gain``, the
    interquartile mean of the runs' gains, points of AP, and ``improvement``, the probability of improvement (0 to 1),
    each with ``_low`` and ``_high``, NA where every task has one seed. Raises InputError for an arm with two settings,
    one of which would be a guess."""
    if line := mixed(run.record for run in runs):
        raise InputError(f"{line}; give directories that have one of them")
    rows = [
        (x.name, len(x.tasks), x.runs, *_ends(gains(x)), *_ends(probability(x)))
        for x in methods(run.record for run in runs)
    ]
    dtypes = {"method": "string", "tasks": "Int64", "runs": "Int64"}
    return pd.DataFrame(
        {x: pd.Series([row[i] for row in rows], dtype=dtypes.get(x, "Float64")) for i, x in enumerate(COLUMNS)}
    )


def _ends(found: Interval) -> tuple[float, float | None, float | None]:
    return found.value, found.low, found.high


def _part(value: float, low: float | None, high: float | None) -> str:
    """``0.80 [0.64, 0.92]``."""
    return number(value, 2) + ("" if low is None or high is None else f" [{low:.2f}, {high:.2f}]")


def across_text(frame: pd.DataFrame) -> TextTable:
    """:func:`across_table` for people."""
    rows = [
        [
            row["method"],
            str(row["tasks"]),
            str(row["runs"]),
            with_interval(row["gain"], row["gain_low"], row["gain_high"]),
            _part(row["improvement"], row["improvement_low"], row["improvement_high"]),
        ]
        for row in row_dicts(frame)
    ]
    return TextTable(
        title="Methods over several data sets or detectors",
        header=["method", "tasks", "runs", "gain", "probability of improvement"],
        rows=rows,
        notes=[
            "A task is a baseline on a data set. gain: interquartile mean over the runs of all tasks, points of AP over"
            " the baseline of the same seed. probability of improvement: that a run of the method beats one of the"
            f" baseline, mean over the tasks. {CONFIDENCE:.0%} bootstrap intervals, seeds drawn within tasks (Agarwal"
            " et al., arXiv 2108.13264); of few seeds a task they are too narrow."
        ],
    )
