"""Figures of what trainings cost: AP against device-hours, and the parts of a training's cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.costs import cost_ratio, on_commonest_hardware
from analysis.frame import row_dicts
from analysis.grid_runs import reference_of
from analysis.load import Run, arm_of, by_arm, by_seed, cost_seconds, finished, teacher_seconds, training_device_seconds
from analysis.plots.style import (
    BLACK,
    COLOURS,
    MARKERS,
    ORANGE,
    PURPLE,
    WIDE,
    Layout,
    label_rows,
    new_figure,
    set_few_xticks,
    set_title,
    set_xlabel,
    shorten,
)
from analysis.render import with_mark, with_unit
from analysis.shown import arms_shown, best_rows
from analysis.table_builders.frontier import any_pretraining, frontier, hours_name, on_gpu

PARTS = {
    "teacher's pre-training": (PURPLE, "//"),
    "the student's own": ("0.75", ""),
    "method-specific": (ORANGE, ".."),
}
"""Colour and hatch of each part of a training's cost."""


LABEL_WIDTH = 52
"""Characters of a line beside the Pareto figure."""


def pareto(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP against the device-hours of the training, with each data set's front."""
    frame = frontier(runs)
    if len(frame) < 2:
        return None
    frame, left_out = best_rows(frame)
    beside = layout == WIDE
    height = max(3.6, 1.0 + 0.16 * len(frame)) if beside else 3.8 + 0.16 * len(frame)
    figure = new_figure(7.5 if beside else layout.width, height)
    axes = figure.subplots()
    by_data: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for number, row in enumerate(row_dicts(frame), 1):
        by_data[row["data"]].append((number, row))
    lines = []
    for i, (data, group) in enumerate(by_data.items()):
        _front(axes, group, COLOURS[i % 8], MARKERS[i % 8])
        lines += [shorten(f"on {data}:", LABEL_WIDTH)] if len(by_data) > 1 else []
        # Which settings were changed is in the table: here it would leave no room for the figure.
        lines += [
            f"{number}  {shorten(with_mark(row['arm'], row['mark'].partition(':')[0]), LABEL_WIDTH)}"
            for number, row in group
        ]
    corner, offset = ((1, 1), (8, 0)) if beside else ((0, 0), (-24, -44))
    axes.annotate(
        "\n".join(lines), corner, xycoords="axes fraction", xytext=offset, textcoords="offset points", va="top",
        fontsize=7.5, linespacing=1.4,
    )  # fmt: skip
    teachers = ", a teacher's pre-training included" if any_pretraining(runs) else ""
    set_xlabel(axes, f"{hours_name(frame['device'])}{teachers}", layout)
    set_few_xticks(axes)
    axes.set_ylabel("COCO box AP (%)")
    axes.set_xlim(0, 1.08 * float(frame["gpu_hours"].max()) or 1.0)
    axes.grid(color="0.92", linewidth=0.8)
    set_title(figure, f"filled: on the Pareto front{left_out}", runs, layout)
    return figure


def _front(axes: Axes, group: Sequence[tuple[int, dict[str, Any]]], colour: str, marker: str) -> None:
    """The numbered points of one data set, and the line through those that no other beats."""
    edge = [(row["gpu_hours"], row["AP"]) for _, row in group if row["front"]]
    axes.step(*zip(*edge, strict=True), where="post", color=colour, linewidth=1.2, zorder=1)
    for number, row in group:
        at, face = (row["gpu_hours"], row["AP"]), colour if row["front"] else "white"
        axes.plot(*at, linestyle="", marker=marker, markersize=11, mec=colour, mfc=face, zorder=2)
        inside = "white" if row["front"] else BLACK
        axes.annotate(str(number), at, ha="center", va="center", fontsize=6.5, zorder=3, color=inside)


def cost_stack(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """Device-hours of each arm's training: a teacher's pre-training, the baseline's own, and what the method adds.

    The number beside a bar is the cost of the table of arms: training device-seconds, its teacher's included, over the
    reference's, by seed. What a longer or larger baseline takes is all its own.
    Of the trainings on the hardware that most ran on: hours of different hardware do not compare.
    """
    records = on_commonest_hardware(run.record for run in runs if run.record.status == "finished")
    references = {arm_of(r): reference_of(r) for r in records}
    runs_of = {arm: finished(of_arm, arm) for arm, of_arm in by_arm(records).items() if arm in references}
    seconds = {arm: by_seed(of_arm, training_device_seconds) for arm, of_arm in runs_of.items()}
    rows = [arm for arm, of in references.items() if seconds[arm] and seconds.get(of)]
    if len(rows) < 2:
        return None
    rows = arms_shown(records, rows, set(references.values()))
    figure = new_figure(layout.width, 1.4 + 0.3 * layout.row * len(rows))
    axes, longest = figure.subplots(), 0.0
    for height, arm in enumerate(reversed(rows)):
        before = fmean(by_seed(runs_of[arm], teacher_seconds).values()) / 3600
        own, whole = (fmean(seconds[x].values()) / 3600 for x in (references[arm], arm))
        start = 0.0
        no_method = all(x.experiment.method.name == "baseline" for x in runs_of[arm].values())
        student = whole if no_method else min(own, whole)
        parts = (before, student, whole - student)
        for width, (colour, hatch) in zip(parts, PARTS.values(), strict=True):
            axes.barh(height, width, left=start, height=0.6, color=colour, hatch=hatch, edgecolor="white")
            start += width
        ratio = cost_ratio(runs_of[arm], runs_of[references[arm]], cost_seconds)
        text = with_unit(ratio.value if ratio else None, "x")
        beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(text, (start, height), **beside)
        longest = max(longest, start)
    for label, (colour, hatch) in list(PARTS.items())[not any_pretraining(runs) :]:
        axes.barh([0], [0], color=colour, hatch=hatch, edgecolor="white", label=label)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=layout.columns)
    label_rows(axes, list(reversed(rows)), layout)
    axes.set_xlim(0, 1.15 * longest)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    hours = hours_name("GPU" if on_gpu(r) else "CPU" for r in records)
    set_xlabel(axes, f"{hours} of training, mean over seeds (beside the bar: ratio to the baseline)", layout)
    set_few_xticks(axes)
    set_title(figure, "What a training costs", runs, layout)
    return figure
