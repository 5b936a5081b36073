"""The spread of AP between seeds of one training: what a difference between two trainings is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

import pandas as pd

from analysis.frame import row_dicts, typed_frame
from analysis.grid_runs import mark_of, records_of, runs_of_grid
from analysis.load import Run, by_seed, score
from analysis.render import TextTable, marks_note, number, with_mark
from analysis.stats.differences import CONFIDENCE, t_quantile
from analysis.stats.power import power
from lgd.config.grids import grid

COUNTS = 3, 5, 10
"""Seeds that a difference is told for."""

COLUMNS = ("arm", "mark", "seeds", "AP", "sd", "lowest", "highest", *(f"detectable_{n}" for n in COUNTS))


def noise_floor(runs: Sequence[Run]) -> pd.DataFrame:
    """A row an arm and setting of the noise-floor grid. Columns ``arm``, ``mark``, ``seeds``, ``AP``, ``sd`` (sample
    standard deviation), ``lowest``, ``highest``, and ``detectable_N`` for N in 3, 5, 10: the half width of the 95% t
    interval that a difference of two such trainings would have with N seeds each, paired by seed but otherwise
    independent (percentage points; none for one seed)."""
    found = runs_of_grid(runs, "noise-floor")
    rows: list[dict[str, Any]] = []
    for arm, settings in found.runs.items():
        for setting, seeds in sorted(settings.items(), key=lambda x: x[0].rank):
            values = list(by_seed(records_of(seeds), score("AP")).values())
            if not values:
                continue
            sd = stdev(values) if len(values) > 1 else None
            rows.append(
                {
                    "arm": arm,
                    "mark": mark_of(setting, seeds),
                    "seeds": len(values),
                    "AP": fmean(values),
                    "sd": sd,
                    "lowest": min(values),
                    "highest": max(values),
                    **{f"detectable_{n}": sd and _half_width(sd, n) for n in COUNTS},
                }
            )
    return typed_frame(rows, COLUMNS)


def _half_width(sd: float, n: int) -> float:
    return t_quantile(CONFIDENCE, n - 1) * sd * math.sqrt(2 / n)


def _found() -> str:
    """``61, 56, 52%``: the power of the t test at half its interval's width, which depends on no spread."""
    return f"{', '.join(f'{100 * power(n, _half_width(1.0, n), math.sqrt(2)):.0f}' for n in COUNTS)}%"


def sentences(frame: pd.DataFrame) -> list[str]:
    """What the rows of :func:`noise_floor` say, a text each; nothing of one seed."""
    found = []
    for row in row_dicts(frame):
        which = f", {with_mark(row['arm'], row['mark'])}," if len(frame) > 1 else ""
        if row["sd"] is not None:
            found.append(
                f"Between {row['seeds']} seeds of one training{which} AP has a standard deviation of"
                f" {number(row['sd'], 2)} points. Were two arms independent, the interval of their difference over five"
                f" seeds each would be ±{number(row['detectable_5'], 2)} points."
            )
    return found


def noise_floor_text(frame: pd.DataFrame) -> TextTable:
    rows = [
        [
            with_mark(row["arm"], row["mark"]),
            str(row["seeds"]),
            number(row["AP"]),
            number(row["sd"], 2),
            f"{number(row['lowest'])} to {number(row['highest'])}",
            *(number(row[f"detectable_{n}"], 2) for n in COUNTS),
        ]
        for row in row_dicts(frame)
    ]
    return TextTable(
        title=grid("noise-floor").title,
        header=["arm", "seeds", "AP", "sd", "range", *(f"±, {n} seeds" for n in COUNTS)],
        rows=rows,
        notes=[
            f"±, n seeds: half the {CONFIDENCE:.0%} Student t interval of the difference between two such trainings"
            f" with n seeds each, were they independent; a true gain of that size is found in {_found()} of the cases.",
            *marks_note(sorted({x for x in frame["mark"].dropna() if x})),
        ],
    )
