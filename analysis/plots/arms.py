"""The figure of a grid's arms: AP of every seed, mean and interval, beside what the training cost."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from analysis.costs import cost_ratio
from analysis.load import arm_of, by_arm, by_seed, cost_seconds, finished, is_reproduction, score
from analysis.plots.style import BLACK, BLUE, GREY, ORANGE, STYLE, save
from analysis.render import MISSING, with_interval
from analysis.shown import arms_shown, seeds_shown
from analysis.stats.differences import CONFIDENCE, paired_difference
from lgd.results.record import Record

NAME_WIDTH = 22
"""Characters of an arm's name on one line."""


NARROW = 12
"""Characters of the reference's name from which on it has a line of its own below the cost panel."""


def arms_figure(records: Sequence[Record], arms: Sequence[str], reference: str, path_stem: Path) -> list[Path]:
    """AP of each arm (every seed, mean, interval) and its training cost relative to ``reference``.

    The interval is the 95% t interval of the paired difference, drawn from the reference's mean: it clears the dashed
    line where the difference's interval excludes zero, whatever spread the arms share. The numbers stand between the
    panels. Arms without a finished run keep their row and say so. Of very many arms, as a search has, those of the
    highest AP are drawn (:func:`analysis.shown.arms_shown`), of very many seeds some. Writes
    ``path_stem`` + ``.png`` (200 dpi) and ``.svg`` atomically, the same bytes for the same records, and returns their
    paths.
    """
    with mpl.rc_context(STYLE):
        figure = _arms(records, arms_shown(records, arms, reference), reference)
        return save(figure, path_stem)


def _arms(records: Sequence[Record], arms: Sequence[str], reference: str) -> Figure:
    names = ["\n".join(textwrap.wrap(arm, NAME_WIDTH)) or "(no name)" for arm in arms]
    lines = sum(max(1.0, 0.55 * (name.count("\n") + 1)) for name in names)
    layout = ConstrainedLayoutEngine(wspace=0.0, w_pad=0.06)
    figure = Figure(figsize=(8.0, 1.75 + 0.36 * lines), layout=layout)
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    figure.suptitle(_title(records), fontsize=10, x=0.01, ha="left")
    _ap_panel(left, records, arms, reference)
    _cost_panel(right, records, arms, reference)
    left.set_yticks(range(len(arms)), names)
    left.set_ylim(len(arms) - 0.5, -0.5)
    for axes in (left, right):
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.spines["left"].set_visible(False)
    right.tick_params(axis="y", labelleft=False)
    keys = _keys(records, arms, reference)
    figure.legend(handles=keys, loc="outside lower left", ncols=len(keys), frameon=False, fontsize=8)
    return figure


def _by_seed(
    records: Sequence[Record], arms: Iterable[str], value: Callable[[Record], float | None]
) -> dict[str, dict[int, float]]:
    """``value`` of each arm's finished runs."""
    records_of = by_arm(records)
    return {arm: by_seed(finished(records_of.get(arm, ()), arm), value) for arm in arms}


def _keys(records: Sequence[Record], arms: Sequence[str], reference: str) -> list[Line2D]:
    """Legend entries of what the AP panel shows."""
    values = _by_seed(records, (*arms, reference), score("AP"))
    keys = [Line2D([], [], linestyle="", marker="o", mfc="white", mec=BLUE, markersize=4.5, label="one seed")]
    if any(len(found) > 1 for found in values.values()):
        keys.append(Line2D([], [], linestyle="", marker="D", color=BLUE, markersize=5.5, label="mean"))
    if any(len(values[arm].keys() & values[reference].keys()) > 1 for arm in arms if arm != reference):
        label = f"{CONFIDENCE:.0%} t interval of the paired difference"
        keys.append(Line2D([], [], color=BLUE, linewidth=1.8, label=label))
    if values[reference]:
        name = textwrap.shorten(reference, 30, placeholder="…")
        keys.append(Line2D([], [], color=GREY, linestyle="--", linewidth=1.1, label=f"mean of {name}"))
    return keys


def _ap_panel(axes: Axes, records: Sequence[Record], arms: Sequence[str], reference: str) -> None:
    values = _by_seed(records, (*arms, reference), score("AP"))
    base = fmean(values[reference].values()) if values[reference] else None
    differences = {
        arm: paired_difference(values[arm], values[reference], CONFIDENCE) for arm in arms if arm != reference
    }
    intervals = {
        arm: (base + difference.low, base + difference.high)
        for arm, difference in differences.items()
        if base is not None and difference and difference.low is not None and difference.high is not None
    }
    axes.set_xlabel("COCO box AP (%)")
    low, high = _view([ap for found in values.values() for ap in found.values()], intervals.values())
    axes.set_xlim(low, high)
    if base is not None:
        axes.axvline(base, color=GREY, linestyle="--", linewidth=1.1, zorder=1)
    beside = axes.get_yaxis_transform()
    heading = f"difference to {textwrap.shorten(reference, 20, placeholder='…')}"
    axes.text(1.03, 1.01, heading, transform=axes.transAxes, fontsize=8, color=GREY, va="bottom")
    for row, arm in enumerate(arms):
        found = list(values[arm].values())
        if not found:
            note: Any = {"ha": "center", "va": "center", "color": GREY, "style": "italic", "backgroundcolor": "white"}
            text = "no AP" if finished(records, arm) else "no finished run"
            axes.text(0.5, row, text, transform=beside, **note)
            axes.text(1.03, row, MISSING, transform=beside, va="center", color=GREY)
            continue
        colour = BLACK if arm == reference else BLUE
        if arm in intervals:
            _interval(axes, row, *intervals[arm], colour)
        if len(found) > 1:
            axes.plot([fmean(found)], [row], marker="D", color=colour, markersize=5.5, zorder=3)
        seeds: Any = {"marker": "o", "markersize": 4.5, "mfc": "white", "mec": colour, "linestyle": ""}
        points = seeds_shown(found)
        axes.plot(points, _spread(row, len(points)), zorder=4, **seeds)
        text, difference = ("reference" if arm == reference else MISSING), differences.get(arm)
        if difference:
            text = with_interval(difference.mean, difference.low, difference.high)
        axes.text(1.03, row, text, transform=beside, va="center", fontsize=8, color=GREY if arm == reference else BLACK)


def _interval(axes: Axes, row: int, low: float, high: float, colour: str) -> None:
    left, right = axes.get_xlim()
    axes.plot([max(low, left), min(high, right)], [row, row], color=colour, linewidth=1.8, zorder=2)
    # An arrowhead, inside the panel so that it leaves the texts beside it alone: the interval goes on.
    inset = 0.008 * (right - left)
    for beyond, edge, marker in ((low < left, left + inset, "<"), (high > right, right - inset, ">")):
        if beyond:
            axes.plot([edge], [row], marker=marker, color=colour, markersize=5, zorder=2)


def _cost_panel(axes: Axes, records: Sequence[Record], arms: Sequence[str], reference: str) -> None:
    name = textwrap.shorten(reference, 22, placeholder="…")
    # A long name needs a line of its own in a panel as narrow.
    axes.set_xlabel(f"device-seconds of training /{' ' if len(name) < NARROW else chr(10)}{name}'s")
    records_of = by_arm(records)
    runs = {arm: finished(records_of.get(arm, ()), arm) for arm in (*arms, reference)}
    beside = axes.get_yaxis_transform()
    largest = 1.0
    for row, arm in enumerate(arms):
        ratio = cost_ratio(runs[arm], runs[reference], cost_seconds)
        if ratio is None:
            axes.text(0.03, row, MISSING, transform=beside, va="center", color=GREY)
            continue
        own, theirs = (by_seed(runs[x], cost_seconds) for x in (arm, reference))
        each = _ratios(own, theirs, ratio.seeds)
        largest = max(largest, ratio.value, *each)
        axes.barh(row, ratio.value, height=0.55, color="0.75" if arm == reference else ORANGE, zorder=2)
        if len(each) > 1 and arm != reference:
            points = seeds_shown(each)
            axes.plot(
                points, _spread(row, len(points)), linestyle="", marker="o", markersize=3.5, mfc="white", mec=BLACK,
                mew=0.8, zorder=3,
            )  # fmt: skip
        axes.annotate(
            f"{ratio.value:.2f}x", (max(ratio.value, *each), row), xytext=(5, 0), textcoords="offset points",
            va="center", fontsize=8,
        )  # fmt: skip
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1.1, zorder=1)
    # Room for the number beside the longest bar.
    axes.set_xlim(0, largest * 1.3)


def _title(records: Sequence[Record]) -> str:
    grids = " / ".join(dict.fromkeys(r.grid for r in records if r.grid)) or " / ".join(
        sorted({arm_of(r) for r in records})
    )
    presets = " / ".join(dict.fromkeys(r.preset or "none" for r in records))
    mark = "" if is_reproduction(records) else " (not a reproduction of the paper)"
    return f"{grids}, preset {presets}{mark}" if records else "no records"


def _view(points: Sequence[float], intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Limits that show every point, and the intervals as far as they leave the points readable.

    From two seeds, an interval is over twelve times as wide as the distance of their differences.
    """
    if not points:
        return 0.0, 1.0
    low, high = min(points), max(points)
    span = max(high - low, 1.0)
    ends = [end for interval in intervals for end in interval]
    lowest = max(min([low, *ends]), low - span)
    highest = min(max([high, *ends]), high + span)
    margin = 0.06 * max(highest - lowest, 1.0)
    return max(lowest - margin, -margin), highest + margin


def _spread(row: float, n: int) -> list[float]:
    """Heights of a row's points, a little apart so that equal values all show."""
    return [row + 0.22 * (i / (n - 1) - 0.5) * 2 if n > 1 else row for i in range(n)]


def _ratios(arm: Mapping[int, float], reference: Mapping[int, float], seeds: Iterable[int]) -> list[float]:
    return [arm[seed] / reference[seed] for seed in seeds if reference[seed] > 0]
