"""The results of ``lgd bench load``: how each cost grows with the size, as a table and as a figure.

In benchmarks, not beside the measurement in ablations/scaling: the documentation's pages are made from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.options import read_results

if TYPE_CHECKING:
    import pandas as pd

PARTS = {
    "sweep": "trials of one sweep, stub trainings under Ray Tune",
    "records": "records, varied from real ones",
    "study": "trials of an Optuna study",
    "cluster": "trials of one sweep, stub trainings on nodes that come and go",
}
"""What is counted, by part of the measurement."""

COLUMNS = (
    *("part", "size", "quantity", "unit", "value"),
    *("cpu", "cores", "memory_gib", "ray", "optuna", "git_commit", "started", "command"),
)

FLAT = 0.1
"""Growth, relative to the value at the smallest size, up to which a cost counts as constant."""

TRIFLE = 0.05
"""Part of the largest increase: smaller ones say nothing of the slope."""

LINEAR = 1.25
"""Exponents up to which a cost is called linear; those of a quadratic one come out near 2."""

LIMITS = {("records", "table"): (10.0, "s"), ("records", "report.html"): (20.0, "MB")}
"""Largest value at the largest size, by part and quantity."""


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """How a cost grows: 0 not at all, 1 in proportion to the size, 2 with its square. None where it cannot be told.

    The slope, on logarithmic scales, of the increase over the smallest size against the increase of the size: what a
    command takes whatever it reads (its imports) hides nothing. Increases below TRIFLE of the largest are left out.
    """
    points = [(size - sizes[0], value - values[0]) for size, value in zip(sizes, values, strict=True)][1:]
    if not points or any(not math.isfinite(x) for x in values):
        return None
    largest = max(gained for _, gained in points)
    if largest <= FLAT * abs(values[0]) or largest <= 0:
        return 0.0
    known = [(math.log(more), math.log(gained)) for more, gained in points if gained >= TRIFLE * largest]
    if len(known) < 2:
        return None
    mean_x, mean_y = (sum(each) / len(known) for each in zip(*known, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in known) / sum((x - mean_x) ** 2 for x, _ in known)


def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row a quantity: its part, unit, values by size, and exponent."""
    found = []
    for (part, quantity), group in frame.groupby(["part", "quantity"], sort=False):
        values = {int(size): float(value) for size, value in zip(group["size"], group["value"], strict=True)}
        values = dict(sorted(values.items()))
        found.append(
            {
                "part": part,
                "quantity": quantity,
                "unit": group["unit"].iloc[0],
                "values": values,
                "exponent": exponent(list(values), list(values.values())),
            }
        )
    return found


def over_limits(frame: pd.DataFrame) -> list[str]:
    """A line for every quantity that grows faster than in proportion to the size, or exceeds its limit."""
    lines = []
    for row in rows(frame):
        name, found = f"{row['part']}: {row['quantity']}", row["exponent"]
        if found is not None and found > LINEAR:
            lines.append(f"{name} grows with the size to the power of {found:.2f}")
        size, value = list(row["values"].items())[-1]
        most, unit = LIMITS.get((row["part"], row["quantity"]), (math.inf, ""))
        if value > most:
            lines.append(f"{name} is {value:.3g} {unit} at {size:,}, more than {most:g}")
    return lines


def markdown(frame: pd.DataFrame) -> str:
    """A table a part, and notes."""
    from analysis.render import pipe_table

    found, texts, first = rows(frame), list[str](), frame.iloc[0]
    for part, what in PARTS.items():
        own = [row for row in found if row["part"] == part]
        if not own:
            continue
        sizes = sorted({size for row in own for size in row["values"]})
        header = [what, *(f"{size:,}" for size in sizes), "exponent"]
        cells = [
            [
                f"{row['quantity']} ({row['unit']})" if row["unit"] else row["quantity"],
                *(_number(row["values"].get(size)) for size in sizes),
                "–" if row["exponent"] is None else f"{row['exponent']:.2f}",
            ]
            for row in own
        ]
        texts += [pipe_table(header, cells), ""]
    over, unknown = over_limits(frame), [row for row in found if row["exponent"] is None]
    fine = f"No exponent is above {LINEAR:g}, nothing is over its limit."
    verdict = f"Over the limits: {'; '.join(over)}." if over else fine
    if unknown:
        verdict += (
            f" Of {len(unknown)} of {len(found)} costs no exponent can be told: too few sizes that differ enough."
        )
    notes = [
        "exponent: of the increase over the smallest size; 0 constant, 1 in proportion to the size, 2 quadratic."
        " Seconds of a command are CPU seconds.",
        verdict,
        f"{first['cpu']}, {first['cores']} cores, {first['memory_gib']} GiB; Ray {first['ray']}, Optuna"
        f" {first['optuna']}, commit {first['git_commit'][:12]}; begun {first['started']} by `{first['command']}`.",
    ]
    return "\n".join([*texts, *(f"- {x}" for x in notes), ""])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def read(path: Path) -> pd.DataFrame:
    """The rows of an earlier measurement."""
    frame = read_results(path, COLUMNS)
    return frame.assign(size=frame["size"].astype(int), value=frame["value"].astype(float))


def draw(frame: pd.DataFrame, stem: Path) -> list[Path]:
    """Cost against size on logarithmic scales, relative to the smallest size, a panel a part; the files written."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    from analysis.plots.style import COLOURS, GREY, MARKERS, STYLE, save

    found = rows(frame)
    parts = [part for part in PARTS if any(row["part"] == part for row in found)]
    with mpl.rc_context(STYLE):
        longest = max(sum(row["part"] == part for row in found) for part in parts) + 2
        figure = Figure(figsize=(4.6 * len(parts), 4.0 + 0.17 * longest), layout="constrained")
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            own = [row for row in found if row["part"] == part and next(iter(row["values"].values())) > 0]
            for i, row in enumerate(own):
                sizes, values = list(row["values"]), list(row["values"].values())
                exponent = "" if row["exponent"] is None else f" ({row['exponent']:.2f})"
                axes.plot(
                    sizes, [x / values[0] for x in values], color=COLOURS[i % 8], marker=MARKERS[(i + i // 8) % 8],
                    markersize=4, linewidth=1.2, label=f"{row['quantity']}{exponent}",
                )  # fmt: skip
            ends = [min(min(row["values"]) for row in own), max(max(row["values"]) for row in own)]
            for power, style in ((1, "--"), (2, ":")):
                grown = [1.0, (ends[1] / ends[0]) ** power]
                axes.plot(ends, grown, style, color=GREY, linewidth=1.0, label=f"size to the power of {power}")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_ylim(0.5, 2 * ends[1] / ends[0])
            sizes = sorted({size for row in own for size in row["values"]})
            axes.xaxis.set_major_locator(FixedLocator(sizes))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:,.0f}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda times, _: f"{times:,g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(PARTS[part])
            axes.set_ylabel("cost over that at the smallest size")
            axes.grid(color="0.92", linewidth=0.8)
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=7)
        figure.suptitle(
            "What grows with the size (in brackets: exponent of the increase)", fontsize=9, x=0.01, ha="left"
        )
        return save(figure, stem)
