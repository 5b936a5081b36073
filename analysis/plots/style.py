"""How figures look, and how they are written: told apart by shape as well as by colour."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from analysis.load import Run, is_reproduction
from lgd.files import atomic_write

# Okabe and Ito's colours, told apart by colour-blind readers; markers differ as well, for grey prints.
BLUE, ORANGE, BLACK, GREY = "#0072B2", "#E69F00", "#000000", "#6B6B6B"
GREEN, VERMILION, PURPLE, SKY = "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    # Text stays text in the SVG: searchable, and read aloud by a screen reader.
    "svg.fonttype": "none",
    "svg.hashsalt": "lgd",
    # An arm's name may hold a dollar sign.
    "text.parse_math": False,
}


def save(figure: Figure, path_stem: Path) -> list[Path]:
    """Write ``figure`` as PNG (200 dpi) and SVG, atomically, without dates or versions in them; the paths."""
    FigureCanvasAgg(figure)
    written = []
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None, "Creator": None})):
        # with_suffix would cut a stem that holds a dot.
        path = path_stem.with_name(path_stem.name + suffix)
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=200, metadata=metadata)
        written.append(path)
    return written


@dataclass(frozen=True)
class Layout:
    """How much room a figure has."""

    width: float
    """Inches."""
    name: int
    """Characters of a line of an arm's name."""
    columns: int
    """Columns of the legend."""
    row: float
    """Height of a row, times that of one line."""


WIDE = Layout(6.5, 30, 3, 1.0)
NARROW = Layout(3.9, 18, 1, 1.6)
"""For a phone's width, with letters of the same size."""


LINE = 8 * 1.2 / 72
"""Inches of a line of an arm's name: 8 points and what lies between two."""


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine())


def label_rows(axes: Axes, names: Sequence[str], layout: Layout = WIDE) -> None:
    """A name for each whole number on the y axis, from 0."""
    wrapped = ["\n".join(_lines(x, layout)) for x in names]
    axes.set_yticks(range(len(names)), wrapped, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def rows_height(names: Sequence[str], layout: Layout, row: float) -> float:
    """Inches for a row of each name of :func:`label_rows`, ``row`` or, if any name has more lines, what they take."""
    return len(names) * max([row, *(LINE * (len(_lines(x, layout)) + 0.5) for x in names)])


def _lines(name: str, layout: Layout) -> list[str]:
    return textwrap.wrap(name, layout.name) or ["(no name)"]


def interval_bar(axes: Axes, height: float, value: float, low: float | None, high: float | None) -> None:
    """A bar from zero, with its interval; hollow without one: from one seed it is no result."""
    colour = BLUE if value >= 0 else ORANGE
    if low is None or high is None:
        axes.barh(height, value, height=0.6, facecolor="white", edgecolor=colour, linewidth=1.2)
        return
    axes.barh(height, value, height=0.6, color=colour)
    axes.plot([low, high], [height, height], color=BLACK, linewidth=1.0, marker="|", markersize=6)


def has_hollow_bars(figure: Figure) -> bool:
    """Whether any bar of :func:`interval_bar` has no interval."""
    bars = [x for axes in figure.axes for container in axes.containers for x in container.get_children()]
    return any(isinstance(x, Rectangle) and x.get_facecolor() == to_rgba("white") for x in bars)


def shorten(text: str, width: int) -> str:
    """A name of at most ``width`` characters, which keeps the mark of what is ours (``Record.shown_arm``)."""
    marked = "(ours: " in text and len(text) > width
    if marked:
        text = re.sub(r" \(ours: [^)]*\)", "", text)
    mark = " (ours)" if marked else ""
    return (textwrap.shorten(text, width - len(mark), placeholder="…") or "(no name)") + mark


def others_left_out(count: int) -> str:
    """Ends the title of a figure that has no room for ``count`` arms."""
    return f", {count} more arm{'s' if count > 1 else ''} left out" if count else ""


def set_title(figure: Figure, text: str, runs: Sequence[Run], layout: Layout) -> None:
    """At the left edge, with a caveat where the runs are not of the paper's setting."""
    width = 95 if layout == WIDE else 52
    figure.suptitle("\n".join(textwrap.wrap(text + not_a_reproduction(runs), width)), fontsize=9, x=0.01, ha="left")


def set_few_xticks(axes: Axes) -> None:
    """For hours: those of a short training have five decimals, and more ticks would touch at a phone's width."""
    axes.xaxis.set_major_locator(MaxNLocator(4))


def set_xlabel(axes: Axes, text: str, layout: Layout) -> None:
    """Wrapped: a long label makes no room for itself."""
    axes.set_xlabel("\n".join(textwrap.wrap(text, 62 if layout == WIDE else 42)))


def not_a_reproduction(runs: Sequence[Run]) -> str:
    """Ends a figure's title where the runs are not of the paper's setting."""
    return "" if is_reproduction(run.record for run in runs) else " (not a reproduction of the paper)"
