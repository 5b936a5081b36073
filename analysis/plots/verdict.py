"""The report's first figure: what each arm gains against what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.costs import cost_ratio
from analysis.grid_runs import reference_of
from analysis.load import Run, by_arm, by_seed, finished, score
from analysis.plots.style import (
    BLACK,
    BLUE,
    GREY,
    ORANGE,
    VERMILION,
    WIDE,
    Layout,
    new_figure,
    set_title,
    set_xlabel,
    shorten,
)
from analysis.render import with_interval, with_unit
from analysis.stats.differences import CONFIDENCE, Difference, paired_difference, verdict
from analysis.table_builders.frontier import any_pretraining

MOST_ARMS = 16
"""Arms of the figure: of more, those with the largest gains."""

LINE = 7.5 * 1.35 / 72
"""Inches of a line of the list of arms."""

HIGHEST = 12.0
"""Points of AP above and below the outermost mean that are shown of an interval: two seeds have one of dozens."""


@dataclass(frozen=True)
class _Point:
    arm: str
    gain: Difference
    cost: float
    trained_longer: bool
    """Whether it is its baseline, trained longer."""


def gain_against_cost(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """A numbered point an arm: gain with its interval over the cost of its training, a frozen teacher's included.

    A dashed line joins each baseline (no gain, cost 1) with itself trained longer: what is above it gains more than
    longer training for the same cost. None where no arm has a baseline.
    """
    found = _points(runs)
    if not found:
        return None
    beside, listed = layout == WIDE, LINE * 2 * (len(found) + 1)
    figure = new_figure(7.5 if beside else layout.width, max(3.4, 0.9 + listed) if beside else 3.8 + listed)
    axes = figure.subplots()
    axes.axhline(0, color=BLACK, linewidth=0.8, zorder=0)
    axes.plot([1], [0], marker="D", color=BLACK, markersize=6, linestyle="", zorder=3)
    means = [point.gain.mean for point in found]
    low, high = min(0.0, *means), max(0.0, *means)
    reach = max(min(_reach(found), HIGHEST), 0.5)
    axes.set_ylim(low - reach, high + reach)
    lines = ["◆  baseline", ""]
    for number, point in enumerate(found, 1):
        _draw(axes, number, point)
        text = with_interval(point.gain.mean, point.gain.low, point.gain.high)
        lines += [f"{number}  {shorten(point.arm, 34 if beside else 52)}", f"    {text}, {with_unit(point.cost, 'x')}"]
    corner, offset = ((1, 1), (10, 0)) if beside else ((0, 0), (-24, -44))
    axes.annotate(
        "\n".join(lines), corner, xycoords="axes fraction", xytext=offset, textcoords="offset points", va="top",
        fontsize=7.5, linespacing=1.35,
    )  # fmt: skip
    axes.set_xlim(min(0.9, *(0.95 * x.cost for x in found)), 1.08 * max(1.05, *(x.cost for x in found)))
    teachers = ", a teacher's pre-training included" if any_pretraining(runs) else ""
    set_xlabel(axes, f"training cost over the baseline's{teachers}", layout)
    axes.set_ylabel("gain in AP, points")
    axes.grid(color="0.92", linewidth=0.8)
    set_title(figure, f"Gain against cost ({CONFIDENCE:.0%} t intervals over paired seeds)", runs, layout)
    return figure


def _points(runs: Sequence[Run]) -> list[_Point]:
    records = [run.record for run in runs]
    found, records_of = [], by_arm(records)
    runs_of = {arm: finished(of_arm, arm) for arm, of_arm in records_of.items()}
    for arm in (x for x, own in runs_of.items() if own):
        first = records_of[arm][0]
        own, base = runs_of[arm], runs_of.get(reference_of(first), {})
        gain = paired_difference(by_seed(own, score("AP")), by_seed(base, score("AP")))
        cost = cost_ratio(own, base)
        if reference_of(first) != arm and gain is not None and cost is not None:
            steps = {x.experiment.schedule.steps for x in base.values()}
            longer = first.experiment.method.name == "baseline" and first.experiment.schedule.steps > max(steps)
            found.append(_Point(arm, gain, cost.value, longer))
    kept = {x.arm for x in sorted(found, key=lambda x: -x.gain.mean)[:MOST_ARMS]}
    return [x for x in found if x.arm in kept]


def _reach(found: Sequence[_Point]) -> float:
    """How far intervals go beyond the means."""
    return 1.1 * max((x.gain.high - x.gain.mean for x in found if x.gain.high is not None), default=1.0)


def _draw(axes: Axes, number: int, point: _Point) -> None:
    gain, longer = point.gain, point.trained_longer
    kind = verdict(gain.low, gain.high)
    colour = VERMILION if longer else {"more": BLUE, "less": ORANGE}.get(kind, GREY)
    if longer:
        axes.plot([1, point.cost], [0, gain.mean], color=VERMILION, linestyle="--", linewidth=1.0, zorder=1)
    if gain.low is not None and gain.high is not None:
        axes.plot([point.cost] * 2, [gain.low, gain.high], color=colour, linewidth=1.4, marker="_", zorder=2)
    face = colour if gain.low is not None else "white"
    marker = "s" if longer else "o"
    axes.plot([point.cost], [gain.mean], linestyle="", marker=marker, markersize=11, mec=colour, mfc=face, zorder=3)
    inside = "white" if gain.low is not None else BLACK
    axes.annotate(str(number), (point.cost, gain.mean), ha="center", va="center", fontsize=6.5, color=inside, zorder=4)
