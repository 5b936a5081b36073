"""The figure of the evidence page: what arms gain over their baselines, beside what their trainings cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, new_figure, save
from analysis.render import with_interval, with_unit
from analysis.stats.differences import CONFIDENCE
from analysis.teachers import NEVER

NEVER_AHEAD = (
    f"{NEVER} The teacher was never better than its student:\n"
    "the arm says nothing for or against the method at full length."
)
"""Two lines: the legend is beside it."""

WIDEST = 15.0
"""Most points of AP to either side: an interval that goes on beyond ends in an arrow."""

COLOURS = {"more": BLUE, "less": ORANGE, "noise": GREY, "": GREY}
"""By verdict; the intervals say the same in grey print."""


def gain_against_cost(rows: Sequence[Mapping[str, Any]], path_stem: Path) -> list[Path]:
    """Draw rows of :func:`analysis.evidence.studies.comparisons`, a line each; the paths of the PNG and the SVG."""
    widest = _reach(rows)
    groups = list(dict.fromkeys((row["data"], row["steps"]) for row in rows))
    ordered = [row for group in groups for row in rows if (row["data"], row["steps"]) == group]
    with mpl.rc_context(STYLE):
        figure = new_figure(9.0, 1.3 + 0.23 * (len(rows) + len(groups)))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=[5, 2])
        heights, labels, height = [], [], 0
        for data, steps in groups:
            of_group = [x for x in ordered if (x["data"], x["steps"]) == (data, steps)]
            left.text(0.0, height, _heading(of_group), transform=left.get_yaxis_transform(), ha="right", va="center",
                      fontsize=8, fontweight="bold")  # fmt: skip
            for row in of_group:
                height += 1
                _gain(left, height, row, widest)
                _cost(right, height, row)
                heights.append(height)
                labels.append(label(row))
            height += 1
        left.set_yticks(heights, labels, fontsize=8)
        left.set_ylim(height - 0.4, -0.6)
        for axes in (left, right):
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
            axes.grid(axis="x", color="0.92", linewidth=0.8)
        left.axvline(0, color=BLACK, linewidth=0.8)
        left.set_xlim(-widest, widest)
        left.set_xlabel(f"gain in COCO box AP, points ({CONFIDENCE:.0%} t interval over paired seeds)")
        right.axvline(1, color=BLACK, linewidth=0.8)
        right.set_xlim(0, 1.35 * max([row["cost"] or 0 for row in rows]))
        right.set_xlabel("cost of training")
        keys = [
            Line2D([], [], color=COLOURS[verdict], marker="o", markersize=4, label=text)
            for verdict, text in (("more", "more AP, beyond noise"), ("less", "less"), ("noise", "noise"))
        ]
        figure.legend(handles=keys, loc="outside lower right", ncols=3, frameon=False, fontsize=8)
        if any(row["never_ahead"] for row in rows):
            figure.supxlabel(NEVER_AHEAD, x=0.01, ha="left", fontsize=7.5)
        return save(figure, path_stem)


def _heading(rows: Sequence[Mapping[str, Any]]) -> str:
    """Detectors, data, steps and seeds of the rows, which have data and steps in common."""
    detectors = " and ".join(dict.fromkeys(row["detector"] for row in rows))
    seeds = " to ".join(str(x) for x in sorted({min(row["pairs"] for row in rows), max(row["pairs"] for row in rows)}))
    return f"{detectors}, {rows[0]['data']}, {rows[0]['steps']} steps, {seeds} seeds"


def label(row: Mapping[str, Any]) -> str:
    """The arm, with the mark that tables give one whose teacher was never better than its student."""
    arm = f"{row['arm']} {NEVER}" if row["never_ahead"] else str(row["arm"])
    return f"{arm}, against a baseline trained as long" if row["kind"] == "equal time" else arm


def _reach(rows: Sequence[Mapping[str, Any]]) -> float:
    """Points of AP to either side that all intervals fit into, WIDEST at most."""
    ends = [abs(row[key]) for row in rows for key in ("gain", "gain_low", "gain_high") if row[key] is not None]
    return min(1.1 * max([1.0, *ends]), WIDEST)


def _gain(axes: Axes, height: int, row: Mapping[str, Any], widest: float) -> None:
    colour, ends = COLOURS[row["verdict"]], (row["gain_low"], row["gain_high"])
    if None not in ends:
        shown = [min(max(x, -widest), widest) for x in ends]
        axes.plot(shown, [height, height], color=colour, linewidth=1.8)
        for end, marker in zip(shown, "<>", strict=True):
            if abs(end) == widest:
                axes.plot([0.985 * end], [height], color=colour, marker=marker, markersize=4.5)
    axes.plot(
        [row["gain"]], [height], color=colour, marker="o", markersize=4.5, mfc=colour if None not in ends else "w"
    )
    text = with_interval(row["gain"], *ends)
    axes.text(1.01, height, text, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=BLACK)


def _cost(axes: Axes, height: int, row: Mapping[str, Any]) -> None:
    if row["cost"] is None:
        return
    axes.barh(height, row["cost"], height=0.6, color="0.8")
    axes.annotate(with_unit(row["cost"], "x"), (row["cost"], height), xytext=(3, 0), textcoords="offset points",
                  va="center", fontsize=7.5)  # fmt: skip
