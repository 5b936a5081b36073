"""Which of very many arms, seeds and rows a figure or a page shows. The CSV and the Markdown table have all of them.

A search of thousands of trials has as many arms: a row for each makes a figure of hundreds of metres.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, TypeVar

from analysis.load import by_arm, by_seed, finished, score
from analysis.render import TextTable
from lgd.results.record import Record

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

MOST_ARMS = 60
"""Arms of one figure."""

MOST_ROWS = 200
"""Rows of one table of the page."""

MOST_SEEDS = 100
"""Seeds of one arm that are drawn as points; means and intervals are of all."""


def arms_shown(
    records: Sequence[Record], arms: Sequence[str], keep: Collection[str] | str = (), most: int = MOST_ARMS
) -> list[str]:
    """``arms``, in their order; of more than ``most`` those of the highest mean AP, and those to ``keep``."""
    if len(arms) <= most:
        return list(arms)
    kept, records_of = {keep} if isinstance(keep, str) else set(keep), by_arm(records)

    def mean(arm: str) -> float:
        found = by_seed(finished(records_of.get(arm, ()), arm), score("AP"))
        return fmean(found.values()) if found else float("-inf")

    kept |= set(sorted((x for x in arms if x not in kept), key=mean, reverse=True)[: most - len(kept)])
    return [arm for arm in arms if arm in kept]


def seeds_shown(values: Sequence[T], most: int = MOST_SEEDS) -> list[T]:
    """``values``, or ``most`` of them at even distances, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]


def best_rows(frame: pd.DataFrame, most: int = MOST_ARMS) -> tuple[pd.DataFrame, str]:
    """The rows of :func:`analysis.table_builders.frontier.frontier` to be drawn, in their order, and a clause on what
    was left out.

    Of more than ``most``: the baselines, and the arms of the highest AP. The clause is "" where all are shown.
    """
    if len(frame) <= most:
        return frame, ""
    # No gain: what others are compared with.
    rank = frame["AP"].where(frame["gain"].notna(), float("inf")).rank(method="first", ascending=False)
    return frame[rank <= most].reset_index(drop=True), f"; the {most} arms of the highest AP of {len(frame):,}"


def first_rows(table: TextTable, most: int = MOST_ROWS) -> TextTable:
    """``table`` with its first ``most`` rows, and a note on how many more there are."""
    if len(table.rows) <= most:
        return table
    more = f"{len(table.rows) - most:,} more rows are left out here; records.csv has every trial."
    return replace(table, rows=table.rows[:most], notes=[*table.notes, more])
