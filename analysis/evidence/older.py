"""The evidence grid's comparisons on the evidence page: a row a detector and study, a column an arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.render import MISSING, with_interval, with_unit

Row = Mapping[str, Any]
"""Of :func:`analysis.evidence.studies.comparisons`."""


@dataclass(frozen=True)
class Line:
    """A row of the table."""

    detector: str
    study: str
    """Its directory's name."""
    label: str
    cells: Sequence[str]
    """One for each of the table's columns."""


@dataclass(frozen=True)
class Older:
    """How often LGD whole, and the other arms, ended above and below what they are compared with, and the table."""

    lgd: Sequence[Row]
    timed: Sequence[Row]
    others: Sequence[Row]
    columns: Sequence[str]
    lines: Sequence[Line]

    @property
    def data(self) -> list[str]:
        return sorted({row["data"] for row in self.lgd})

    @property
    def costs(self) -> list[float]:
        """The lowest and the highest cost of LGD over its baseline's."""
        found = [row["cost"] for row in self.lgd if row["cost"] is not None]
        return [min(found), max(found)] if found else []


def count(rows: Sequence[Row], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


def older(rows: Sequence[Row]) -> Older | None:
    """None without rows."""
    if not rows:
        return None
    plain = [row for row in rows if row["kind"] == "baseline"]
    columns = list(dict.fromkeys(_column(row) for row in sorted(rows, key=lambda x: x["kind"] != "baseline")))
    found: dict[tuple[str, str], dict[str, str]] = {}
    labels: dict[tuple[str, str], str] = {}
    for row in rows:
        key = (row["study"], row["detector"])
        found.setdefault(key, {})[_column(row)] = _cell(row)
        labels[key] = f"{row['data']}, {row['steps']}"
    lines = [
        Line(detector, study, labels[study, detector], [cells.get(x, MISSING) for x in columns])
        for (study, detector), cells in found.items()
    ]
    lgd = [row for row in plain if _arm(row) == "LGD"]
    return Older(
        lgd, [row for row in rows if row["kind"] == "equal time"], [row for row in plain if _arm(row) != "LGD"],
        columns, lines,
    )  # fmt: skip


def _arm(row: Row) -> str:
    return str(row["arm"]).removeprefix(f"{row['detector']} ")


def _column(row: Row) -> str:
    return f"{_arm(row)}, equal time" if row["kind"] == "equal time" else _arm(row)


def _cell(row: Row) -> str:
    """Gain with its interval, seeds, and cost: ``+0.1 [-1.0, +1.2] (5; 1.87x)``."""
    text = with_interval(row["gain"], row["gain_low"], row["gain_high"])
    return f"{text} ({row['pairs']}; {with_unit(row['cost'], 'x')})"
