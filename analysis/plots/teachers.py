"""The figure of what a teacher makes of its labels, module by module, while it is trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from analysis.load import Run, arm_of
from analysis.plots.style import COLOURS, MARKERS, WIDE, Layout, new_figure, set_title, set_xlabel, shorten
from lgd.results.record import Record

LEAST = 1e-4
"""Where the log scale ends: what is below has no labels left in it."""


def label_signal(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """How far the outputs of each module of the teacher follow the labels, against the steps; means over the seeds.

    Of the first arm that measured it. None where none did, twice or more.
    """
    measured = [run.record for run in runs if len(_points(run.record)) > 1]
    if not measured:
        return None
    arm = arm_of(measured[0])
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for step, signal in (x for record in measured if arm_of(record) == arm for x in _points(record)):
        for stage, value in signal.items():
            found[stage][step].append(max(value, LEAST))
    figure = new_figure(layout.width, 3.4)
    axes = figure.subplots()
    for i, (stage, values) in enumerate(found.items()):
        steps = sorted(values)
        axes.plot(
            steps, [fmean(values[x]) for x in steps], color=COLOURS[i % 8], marker=MARKERS[i % 8], markersize=4,
            label=stage.replace("_", " "),
        )  # fmt: skip
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("relative change")
    set_xlabel(axes, "training step", layout)
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=layout.columns)
    set_title(figure, f"{shorten(arm, 40)}: what is left of the labels when each is exchanged", runs, layout)
    return figure


def _points(record: Record) -> list[tuple[int, dict[str, float]]]:
    """The signal by step: before the first evaluation on a few images, then on all."""
    return [*record.label_signal, *((x.step, x.label_signal) for x in record.evaluations if x.label_signal)]
