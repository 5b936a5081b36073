"""Figures of when distillation gains: against the teacher's lead, and against images and features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from analysis.load import Run
from analysis.plots.style import (
    BLUE,
    COLOURS,
    MARKERS,
    VERMILION,
    WIDE,
    Layout,
    new_figure,
    set_title,
    set_xlabel,
    shorten,
)
from analysis.render import signed, with_unit
from analysis.stats.differences import CONFIDENCE
from analysis.table_builders.gain_by_data import gains_by_data
from analysis.verdicts.split_gains import split_gains

DIVERGING = LinearSegmentedColormap.from_list("gain", [VERMILION, "#FFFFFF", BLUE])
"""Less, nothing, more."""

PALE = 0.35
"""Opacity of a gain that is within noise, or of too few seeds to be judged."""

LEAST_SCALE = 1.0
"""Points of AP at which the colours are full, at least: noise alone does not fill a map."""


def imitation_against_lead(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """What imitation gains against how far the teacher is ahead of its student, an arm a point; None for fewer than
    three arms that were trained without imitation too."""
    found = [x for x in split_gains([run.record for run in runs]) if x.imitation is not None and x.lead is not None]
    if len(found) < 3:
        return None
    # The names below take their own room.
    figure = new_figure(layout.width, 3.0 + 0.16 * -(-len(found) // layout.columns))
    axes = figure.subplots()
    for i, x in enumerate(found):
        if x.lead is None or x.imitation is None:
            continue
        colour, marker = COLOURS[i % 8], MARKERS[(i + i // 8) % 8]
        axes.plot(x.lead.mean, x.imitation.mean, linestyle="", marker=marker, color=colour, label=shorten(x.arm, 34))
        if x.imitation.low is not None and x.imitation.high is not None:
            axes.plot([x.lead.mean] * 2, [x.imitation.low, x.imitation.high], color=colour, linewidth=0.8, alpha=0.6)
        if x.lead.low is not None and x.lead.high is not None:
            axes.plot([x.lead.low, x.lead.high], [x.imitation.mean] * 2, color=colour, linewidth=0.8, alpha=0.6)
    axes.axhline(0.0, color="0.3", linewidth=0.8)
    axes.axvline(0.0, color="0.3", linewidth=0.8)
    axes.set_ylabel("imitation's gain (AP)")
    set_xlabel(axes, f"teacher's AP over its student's in the end (bars: {CONFIDENCE:.0%} t intervals)", layout)
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=layout.columns, frameon=False, fontsize=7)
    set_title(figure, "does a better teacher teach? An arm over itself without imitation", runs, layout)
    return figure


def gain_by_data(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """A map of gains: a row a method and backbone, a column a number of training images; None without any."""
    found = gains_by_data([run.record for run in runs])
    columns = sorted({images for row in found for images in row.cells})
    if not found or len(columns) < 2:
        return None
    values = np.array([[row.cells[x].gain.mean if x in row.cells else np.nan for x in columns] for row in found])
    clear = np.array([[x in row.cells and row.cells[x].verdict in ("more", "less") for x in columns] for row in found])
    scale = max(LEAST_SCALE, float(np.nanmax(np.abs(values))))
    figure = new_figure(layout.width, 1.4 + 0.55 * len(found))
    axes = figure.subplots()
    # What is within noise, or of too few seeds, is pale.
    strength = np.where(clear, 1.0, PALE)
    image = axes.imshow(values, cmap=DIVERGING, vmin=-scale, vmax=scale, aspect="auto", alpha=strength)
    for i, row in enumerate(found):
        for j, x in enumerate(columns):
            if x not in row.cells:
                continue
            gain, cost = row.cells[x].gain, row.cells[x].cost
            interval = "" if gain.low is None or layout is not WIDE else f"\n[{signed(gain.low)}, {signed(gain.high)}]"
            of = f" ({with_unit(cost, 'x')})" if cost and layout is WIDE else ""
            axes.text(
                j, i, f"{signed(gain.mean)}{of}{interval}", ha="center", va="center", fontsize=7,
                fontweight="bold" if clear[i, j] else "normal",
                color="white" if clear[i, j] and abs(gain.mean) > 0.75 * scale else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(columns)), [f"{x:,}" for x in columns])
    axes.set_yticks(range(len(found)), [shorten(row.label, layout.name) for row in found])
    axes.spines[:].set_visible(False)
    set_xlabel(axes, "training images", layout)
    if layout is WIDE:
        scalar = ScalarMappable(image.norm, DIVERGING)
        figure.colorbar(scalar, ax=axes, label="gain (AP)", shrink=0.8)
    title = f"gain at equal steps (cost over the baseline's); bold: {CONFIDENCE:.0%} t interval leaves zero out"
    set_title(figure, title, runs, layout)
    return figure
