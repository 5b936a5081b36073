"""Figures of AP against one number: the learning rate, the steps of the whole training, a loss's weight."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.load import Run
from analysis.plots.style import COLOURS, MARKERS, WIDE, Layout, new_figure, set_title, set_xlabel, shorten
from analysis.rates import Curve, baseline_of, length_curves, pairs, rate_curves, weight_curves
from analysis.stats.differences import CONFIDENCE, mean_interval
from analysis.table_builders.crossing import crossings

POINTS = f"points: seeds; line: mean; bar: {CONFIDENCE:.0%} t interval over seeds"


def learning_rates(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP against the learning rate, an arm a line; None unless an arm and its baseline have several."""
    curves = rate_curves(run.record for run in runs)
    if not pairs(curves):
        return None
    figure = _figure(curves, layout, mark_best=True)
    set_xlabel(figure.axes[0], f"learning rate, on a log scale ({POINTS})", layout)
    set_title(figure, "filled: an arm's best rate", runs, layout)
    return figure


def schedule_lengths(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP against the steps of the whole training, an arm a line, and where they cross.

    None unless an arm and its baseline have two lengths in common.
    """
    records = [run.record for run in runs]
    found = crossings(records)
    if not found:
        return None
    curves = length_curves(records)
    figure = _figure(curves, layout)
    axes = figure.axes[0]
    colours = {curve.name: COLOURS[i % 8] for i, curve in enumerate(curves)}
    for i, each in enumerate(x for x in found if x.at is not None):
        # In the arm's colour: where it crosses its baseline, and on the axis the interval of that.
        axes.axvline(each.at or 0.0, color=colours[each.arm], linestyle="--", linewidth=1.0, zorder=0)
        if each.low is not None and each.high is not None:
            ends, height = [each.low, min(each.high, each.longest)], 0.02 + 0.03 * i
            axes.plot(ends, [height] * 2, transform=axes.get_xaxis_transform(), color=colours[each.arm], linewidth=3)
    set_xlabel(axes, f"steps of the whole training, on a log scale ({POINTS})", layout)
    set_title(figure, " ".join(x.line for x in found), runs, layout)
    return figure


def distill_weights(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP against the factor of the distillation loss, a method a line, and the baseline's AP; None unless two methods
    have several."""
    records = [run.record for run in runs]
    curves = [x for x in weight_curves(records) if min(x.points) > 0]
    if len({x.method for x in curves}) < 2:
        return None
    figure = _figure(curves, layout, mark_best=True)
    for seeds in {tuple(baseline_of(x, records).values()): None for x in curves}:
        if seeds:
            figure.axes[0].axhline(fmean(seeds), color="0.3", linestyle="--", linewidth=1.0)
    set_xlabel(figure.axes[0], f"factor of the method's own weight, on a log scale ({POINTS})", layout)
    set_title(figure, "filled: a method's best weight; dashed: the baseline", runs, layout)
    return figure


def _figure(curves: Sequence[Curve], layout: Layout, *, mark_best: bool = False) -> Figure:
    figure = new_figure(layout.width, 3.6)
    axes = figure.subplots()
    for i, curve in enumerate(curves):
        _draw(axes, curve, COLOURS[i % 8], MARKERS[i % 8], mark_best)
    axes.set_xscale("log")
    values = sorted({x for curve in curves for x in curve.points})
    axes.xaxis.set_major_locator(FixedLocator(values))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(values, [f"{x:g}" for x in values])
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", ncols=layout.columns, frameon=False, fontsize=8)
    return figure


def _draw(axes: Axes, curve: Curve, colour: str, marker: str, mark_best: bool) -> None:
    at = list(curve.points)
    axes.plot(at, [curve.mean(x) for x in at], color=colour, linewidth=1.4, label=shorten(curve.name, 40))
    for x, seeds in curve.points.items():
        axes.plot([x] * len(seeds), list(seeds.values()), linestyle="", marker=".", markersize=3, color=colour)
        face = colour if mark_best and x == curve.best else "white"
        axes.plot([x], [curve.mean(x)], linestyle="", marker=marker, markersize=6, mec=colour, mfc=face)
        found = mean_interval(seeds.values())
        if found is not None and found.low is not None and found.high is not None:
            # No wider than what the points need to stay readable: two seeds have an interval twelve times as wide.
            axes.plot([x, x], [max(found.low, 0.0), min(found.high, 100.0)], color=colour, linewidth=0.8, alpha=0.6)
