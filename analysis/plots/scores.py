"""Figures of scores: gains, learning curves, the loss weights, gains class by class."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from analysis.frame import row_dicts
from analysis.grid_runs import reference_of
from analysis.load import Run, arm_of, by_arm, finished, score
from analysis.plots.style import (
    BLACK,
    COLOURS,
    GREY,
    MARKERS,
    WIDE,
    Layout,
    interval_bar,
    label_rows,
    new_figure,
    others_left_out,
    rows_height,
    set_title,
    set_xlabel,
    shorten,
)
from analysis.render import with_mark
from analysis.shown import best_rows
from analysis.stats.differences import CONFIDENCE, mean_interval
from analysis.table_builders.frontier import frontier
from lgd.config.grids import DISTILL_WEIGHTS, INSTRUCTIVE_WEIGHTS
from lgd.methods.label_guided import LGD
from lgd.results.record import Record, Scores

INTERVAL = f"line: {CONFIDENCE:.0%} t interval over seeds; hollow: one seed"
"""Legend of a bar."""

MOST_CURVES = 6
"""Arms of one figure of learning curves."""

MOST_CLASSES = 40
"""Classes of one figure: of more, those at the two ends are drawn."""


def gains(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """Each arm's AP over its reference's, a bar with its interval."""
    frame, left_out = best_rows(frontier(runs))
    rows = [row for row in row_dicts(frame) if row["gain"] is not None][::-1]
    if not rows:
        return None
    names = [with_mark(row["arm"], row["mark"]) for row in rows]
    # Room for the title and the axis below, also with a single row.
    figure = new_figure(layout.width, 1.3 + rows_height(names, layout, 0.3 * layout.row))
    axes = figure.subplots()
    for height, row in enumerate(rows):
        interval_bar(axes, height, row["gain"], row["gain_low"], row["gain_high"])
    label_rows(axes, names, layout)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    set_xlabel(axes, f"AP over its baseline, points ({INTERVAL})", layout)
    set_title(figure, f"Gain of each arm{left_out}", runs, layout)
    return figure


def curves(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP while training, of the student and of the instructive features (dashed), mean over the seeds."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in (run.record for run in runs):
        if record.status == "finished" and len(record.evaluations) > 1:
            found[arm_of(record)].append(record)
    if not found:
        return None
    # What the others are compared with and those with a teacher say most.
    reference, _ = Counter(reference_of(of_arm[0]) for of_arm in found.values()).most_common(1)[0]
    without_teacher = {arm for arm in found if not any(x.teacher for r in found[arm] for x in r.evaluations)}
    order = sorted(found, key=lambda arm: (arm != reference, arm in without_teacher))[:MOST_CURVES]
    figure = new_figure(layout.width, 3.8)
    axes = figure.subplots()
    for i, arm in enumerate(order):
        for which, style in (("student", "-"), ("teacher", "--")):
            points: dict[int, list[float]] = defaultdict(list)
            for point in (x for record in found[arm] for x in record.evaluations):
                scores: Scores | None = getattr(point, which)
                if scores is not None and scores.AP is not None:
                    points[point.step].append(scores.AP)
            if points:
                steps = sorted(points)
                label = shorten(arm, 40) + (", instructive features" if which == "teacher" else "")
                axes.plot(
                    steps, [fmean(points[x]) for x in steps], style, color=COLOURS[i], marker=MARKERS[i], markersize=4,
                    mfc="white" if which == "teacher" else COLOURS[i], label=label,
                )  # fmt: skip
    set_xlabel(axes, "training step", layout)
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=7.5, ncols=min(layout.columns, 2))
    left_out = others_left_out(len(found) - len(order))
    set_title(figure, f"Learning curves, means over seeds{left_out}", runs, layout)
    return figure


def loss_weights(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """AP against the distillation loss's weight, a line for each weight of the instructive features' loss."""
    own = [run.record for run in runs if run.record.grid == "loss-weights"]
    records = [r for r in own if r.status == "finished"]
    points: dict[tuple[float, float], list[float]] = defaultdict(list)
    for record in records:
        method, ap = record.experiment.method, score("AP")(record)
        if isinstance(method, LGD) and ap is not None:
            points[method.distill_weight, method.instructive_weight].append(ap)
    if len(points) < 2:
        return None
    figure = new_figure(layout.width, 3.6)
    axes = figure.subplots()
    baseline = [ap for r in records if r.experiment.method.name == "baseline" and (ap := score("AP")(r)) is not None]
    if baseline:
        axes.axhline(fmean(baseline), color=GREY, linestyle="--", linewidth=1.1, label="baseline")
    for i, instructive in enumerate(INSTRUCTIVE_WEIGHTS):
        at = [x for x in DISTILL_WEIGHTS if (x, instructive) in points]
        found = [mean_interval(points[x, instructive]) for x in at]
        means = [x.mean for x in found if x]
        axes.plot(
            at,
            means,
            color=COLOURS[i],
            marker=MARKERS[i],
            markersize=5,
            label=f"instructive loss times {instructive:g}",
        )
        for x, each in zip(at, found, strict=True):
            if each and each.low is not None and each.high is not None:
                axes.plot([x, x], [each.low, each.high], color=COLOURS[i], linewidth=1.0, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xticks(DISTILL_WEIGHTS, [f"{x:g}" for x in DISTILL_WEIGHTS])
    axes.minorticks_off()
    set_xlabel(axes, "weight of the distillation loss", layout)
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=min(layout.columns, 2))
    set_title(figure, "Sensitivity to the loss weights", runs, layout)
    return figure


def classes(runs: Sequence[Run], layout: Layout = WIDE) -> Figure | None:
    """Difference of each class's AP, LGD less its baseline: of the first such pair in the records' order."""
    records = [run.record for run in runs]
    records_of = by_arm(records)
    for arm in dict.fromkeys(arm_of(r) for r in records if r.experiment.method.name == "lgd"):
        reference = reference_of(records_of[arm][0])
        ours, base = (finished(records_of.get(x, ()), x) for x in (arm, reference))
        found = _class_differences(ours, base)
        if found:
            break
    else:
        return None
    ordered = sorted(found.items(), key=lambda x: fmean(x[1]))
    cut = len(ordered) > MOST_CLASSES
    if cut:
        ordered = ordered[: MOST_CLASSES // 2] + ordered[-MOST_CLASSES // 2 :]
    figure = new_figure(layout.width, 1.3 + rows_height([name for name, _ in ordered], layout, 0.22))
    axes = figure.subplots()
    for height, (_, values) in enumerate(ordered):
        each = mean_interval(values)
        if each is None:
            continue
        interval_bar(axes, height, each.mean, each.low, each.high)
    label_rows(axes, [name for name, _ in ordered], layout)
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    set_xlabel(axes, f"AP over the baseline's, points ({INTERVAL})", layout)
    some = f", the {MOST_CLASSES // 2} at each end" if cut else ""
    set_title(figure, f"{shorten(arm, 40)}, class by class{some}", runs, layout)
    return figure


def _class_differences(ours: Mapping[int, Record], base: Mapping[int, Record]) -> dict[str, list[float]]:
    """By class, the difference of each common seed."""
    found: dict[str, list[float]] = defaultdict(list)
    for seed in ours.keys() & base.keys():
        mine, theirs = ours[seed].student, base[seed].student
        for name, value in (mine.per_class if mine else {}).items():
            other = theirs.per_class.get(name) if theirs else None
            if value is not None and other is not None:
                found[name].append(value - other)
    return found
