"""Figures of AP against device-hours while training, and of what part of the runs gains how much."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure

from analysis.costs import on_commonest_hardware
from analysis.load import Run, arm_of
from analysis.plots.style import (
    BLACK,
    COLOURS,
    MARKERS,
    WIDE,
    Layout,
    new_figure,
    others_left_out,
    set_few_xticks,
    set_title,
    set_xlabel,
    shorten,
)
from analysis.stats.differences import CONFIDENCE
from analysis.table_builders.frontier import any_pretraining, hours_name, on_gpu
from analysis.table_builders.time_to_target import Points, points
from analysis.verdicts.across import PROFILE, methods, profile
from lgd.results.record import Record

MOST_ARMS = 6
"""Arms of one figure."""


def ap_against_hours(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP while training against the device-hours until then, a frozen teacher's included, means over the seeds.

    Of the trainings on the hardware that most ran on: hours of different hardware do not compare.
    """
    records = [run.record for run in runs if run.record.status == "finished" and len(points(run.record)) > 1]
    found: dict[str, list[Record]] = defaultdict(list)
    for record in on_commonest_hardware(records):
        found[arm_of(record)].append(record)
    if len(found) < 2:
        return None
    figure = new_figure(layout.width, 3.8)
    axes = figure.subplots()
    for i, (arm, of_arm) in enumerate(list(found.items())[:MOST_ARMS]):
        hours, aps = zip(*mean_points([points(x) for x in of_arm]), strict=True)
        axes.plot(hours, aps, color=COLOURS[i], marker=MARKERS[i], markersize=4, label=shorten(arm, 40))
    devices = {"GPU" if on_gpu(x) else "CPU" for shown in found.values() for x in shown}
    teachers = ", a teacher's pre-training included" if any_pretraining(runs) else ""
    set_xlabel(axes, f"{hours_name(devices)} of training{teachers}", layout)
    axes.set_xlim(left=0)
    set_few_xticks(axes)
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=7.5, ncols=min(layout.columns, 2))
    left_out = others_left_out(len({arm_of(x) for x in records}) - min(len(found), MOST_ARMS))
    set_title(figure, f"AP for the time spent, means over seeds{left_out}", runs, layout)
    return figure


def mean_points(curves: Sequence[Points]) -> Points:
    """The mean of curves with equally many points; of others, those with the most."""
    most = max(map(len, curves))
    whole = [x for x in curves if len(x) == most]
    return [(fmean(x[i][0] for x in whole), fmean(x[i][1] for x in whole)) for i in range(most)]


def performance_profile(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """The part of the runs that gain more than so many points of AP, over several data sets or detectors."""
    found = methods(run.record for run in runs)[:MOST_ARMS]
    if not found:
        return None
    figure = new_figure(layout.width, 3.6)
    axes = figure.subplots()
    for i, method in enumerate(found):
        part, low, high = profile(method)
        label = f"{shorten(method.name, 30)}, {len(method.tasks)} tasks"
        axes.step(PROFILE, part, where="post", color=COLOURS[i], label=label)
        axes.fill_between(PROFILE, low, high, step="post", color=COLOURS[i], alpha=0.15, linewidth=0)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.axhline(0.5, color="0.8", linewidth=0.8, linestyle="--")
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("part of the runs that gain more")
    set_xlabel(
        axes, f"gain in AP over the baseline of the same seed, points (band: {CONFIDENCE:.0%} bootstrap)", layout
    )
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=min(layout.columns, 2))
    set_title(figure, "Performance profile over data sets and detectors", runs, layout)
    return figure
