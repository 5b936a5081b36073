"""Figures of what trainings gain and cost, as PNG and SVG: told apart by shape as well as by colour."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from analysis.arms import CONFIDENCE, frontier, marked, reference_of, rows_of
from analysis.figures import BLACK, BLUE, GREY, ORANGE, STYLE, save
from analysis.load import Run, arm_of, by_seed, finished, gpu_hours, is_reproduction, pretraining_hours, score
from analysis.stats import mean_interval
from lgd.config.grids import DISTILL_WEIGHTS, INSTRUCTIVE_WEIGHTS
from lgd.results.record import Record, Scores

GREEN, VERMILION, PURPLE, SKY = "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

PARTS = {
    "teacher's pre-training": (PURPLE, "//"),
    "the student's own": ("0.75", ""),
    "method-specific": (ORANGE, ".."),
}
"""Of a training's cost: colour and hatch."""

MOST_CURVES = 6
"""Arms of one figure of learning curves."""

MOST_CLASSES = 40
"""Classes of one figure: more are cut down to the ends."""


def draw(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Draw every figure that the records have the numbers for; their paths. What cannot be drawn is left out."""
    drawn = {name: save(figure, directory / name) for name, figure in figures(runs)}
    for name in FIGURES.keys() - drawn.keys():
        for suffix in (".png", ".svg"):
            # One of an earlier state of the directory would pass for this one's.
            (directory / (name + suffix)).unlink(missing_ok=True)
    return [path for paths in drawn.values() for path in paths]


def figures(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Each figure that there is something for, with its name, to be saved before the next is asked for."""
    ordered = sorted(runs, key=_place)
    for name, make in FIGURES.items():
        with mpl.rc_context(STYLE):
            figure = make(ordered)
            if figure is not None:
                yield name, figure


def _place(run: Run) -> tuple[object, ...]:
    """Arms of one reference together, the reference first."""
    arm, reference = arm_of(run.record), reference_of(run.record)
    return run.record.preset, reference, arm != reference, arm, run.record.experiment.seed


def pareto(runs: Sequence[Run]) -> Figure | None:
    """AP against training GPU-hours, with the front that no other arm is above and left of."""
    frame = frontier(runs)
    if len(frame) < 2:
        return None
    figure = _figure(7.5, max(3.6, 0.8 + 0.2 * len(frame)))
    axes = figure.subplots()
    groups: dict[tuple[str, str], list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for i, row in enumerate(rows_of(frame), 1):
        groups[row["mark"], row["data"]].append((i, row))
    for i, group in enumerate(groups.values()):
        colour, front = COLOURS[i % 8], [row for _, row in group if row["front"]]
        edge = [(x["gpu_hours"], x["AP"]) for x in front]
        axes.step(*zip(*edge, strict=True), where="post", color=colour, linewidth=1.2, zorder=1)
        for number, row in group:
            at, face = (row["gpu_hours"], row["AP"]), colour if row["front"] else "white"
            axes.plot(*at, linestyle="", marker=MARKERS[i % 8], markersize=11, mec=colour, mfc=face, zorder=2)
            inside = "white" if row["front"] else BLACK
            axes.annotate(str(number), at, ha="center", va="center", fontsize=6.5, zorder=3, color=inside)
    lines = [
        f"{number}  {marked(_short(row['arm'], 44), row['mark'])}" for group in groups.values() for number, row in group
    ]
    axes.text(1.02, 1.0, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=7.5, linespacing=1.4)
    axes.set_xlabel("GPU-hours, a teacher's pre-training included")
    axes.set_ylabel("COCO box AP (%)")
    axes.set_xlim(0, 1.08 * float(frame["gpu_hours"].max()) or 1.0)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_title(f"filled: on the Pareto front{_caveat(runs)}", loc="left", fontsize=9)
    return figure


def gains(runs: Sequence[Run]) -> Figure | None:
    """Each arm's AP over its reference's, a bar with its interval."""
    frame = frontier(runs)
    rows = [row for row in rows_of(frame) if row["gain"] is not None][::-1]
    if not rows:
        return None
    figure = _figure(6.5, 1.1 + 0.3 * len(rows))
    axes = figure.subplots()
    for height, row in enumerate(rows):
        axes.barh(height, row["gain"], height=0.6, color=BLUE if row["gain"] >= 0 else ORANGE)
        if row["gain_low"] is not None:
            axes.plot([row["gain_low"], row["gain_high"]], [height, height], color=BLACK, marker="|", markersize=6)
    _names(axes, [marked(row["arm"], row["mark"]) for row in rows])
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_xlabel(f"AP over its baseline (points; line: {CONFIDENCE:.0%} t interval over seeds)")
    axes.set_title(f"Gain of each arm{_caveat(runs)}", loc="left", fontsize=9)
    return figure


def curves(runs: Sequence[Run]) -> Figure | None:
    """AP while training, of the student and of the instructive features (dashed), mean over the seeds."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in (run.record for run in runs):
        if record.status == "finished" and len(record.evaluations) > 1:
            found[arm_of(record)].append(record)
    # Those with a teacher and what they are compared with say most.
    order = sorted(found, key=lambda arm: not any(x.teacher for r in found[arm] for x in r.evaluations))[:MOST_CURVES]
    if not found:
        return None
    figure = _figure(7.0, 3.8)
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
                label = _short(arm, 40) + (", instructive features" if which == "teacher" else "")
                axes.plot(
                    steps, [fmean(points[x]) for x in steps], style, color=COLOURS[i], marker=MARKERS[i], markersize=4,
                    mfc="white" if which == "teacher" else COLOURS[i], label=label,
                )  # fmt: skip
    axes.set_xlabel("training step")
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=7.5, ncols=2)
    left = f", {len(found) - len(order)} more arms left out" if len(found) > len(order) else ""
    axes.set_title(f"Learning curves, means over seeds{left}{_caveat(runs)}", loc="left", fontsize=9)
    return figure


def cost_stack(runs: Sequence[Run]) -> Figure | None:
    """GPU-hours of each arm: a teacher's pre-training, the student's own (its baseline's), and the method's."""
    records = [run.record for run in runs]
    arms = list(dict.fromkeys(arm_of(r) for r in records if r.status == "finished" and r.device_seconds))
    references = {arm_of(r): reference_of(r) for r in records}
    hours = {arm: _mean(records, arm, gpu_hours) for arm in arms}
    rows = [
        (arm, _mean(records, arm, pretraining_hours), hours[references[arm]], hours[arm])
        for arm in arms
        if references[arm] in hours
    ]
    if len(rows) < 2:
        return None
    figure = _figure(6.5, 1.4 + 0.3 * len(rows))
    axes = figure.subplots()
    for height, (_, before, own, overall) in enumerate(reversed(rows)):
        start = 0.0
        parts = (before, min(own, overall - before), max(overall - before - own, 0.0))
        for width, (colour, hatch) in zip(parts, PARTS.values(), strict=True):
            axes.barh(height, width, left=start, height=0.6, color=colour, hatch=hatch, edgecolor="white")
            start += width
        beside: Any = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{overall / own:.2f}x", (start, height), **beside)
    for label, (colour, hatch) in PARTS.items():
        axes.barh([0], [0], color=colour, hatch=hatch, edgecolor="white", label=label)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=3)
    _names(axes, [x[0] for x in reversed(rows)])
    axes.set_xlim(0, 1.15 * max(x[3] for x in rows))
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_xlabel("GPU-hours (means over seeds; beside the bar: ratio to the baseline)")
    axes.set_title(f"What a training costs{_caveat(runs)}", loc="left", fontsize=9)
    return figure


def loss_weights(runs: Sequence[Run]) -> Figure | None:
    """AP against the distillation loss's weight, a line for each weight of the instructive features' loss."""
    own = [run.record for run in runs if run.record.grid == "loss-weights"]
    records = [r for r in own if r.status == "finished"]
    points: dict[tuple[float, float], list[float]] = defaultdict(list)
    for record in records:
        method, ap = record.experiment.method, score("AP")(record)
        if method.name == "lgd" and ap is not None:
            points[method.distill_weight, method.instructive_weight].append(ap)
    if len(points) < 2:
        return None
    figure = _figure(6.0, 3.6)
    axes = figure.subplots()
    baseline = [ap for r in records if r.experiment.method.name == "baseline" and (ap := score("AP")(r)) is not None]
    if baseline:
        axes.axhline(fmean(baseline), color=GREY, linestyle="--", linewidth=1.1, label="baseline")
    for i, instructive in enumerate(INSTRUCTIVE_WEIGHTS):
        at = [x for x in DISTILL_WEIGHTS if (x, instructive) in points]
        found = [mean_interval(points[x, instructive], CONFIDENCE) for x in at]
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
    axes.set_xlabel("weight of the distillation loss")
    axes.set_ylabel("COCO box AP (%)")
    axes.grid(color="0.92", linewidth=0.8)
    figure.legend(loc="outside lower left", frameon=False, fontsize=8, ncols=2)
    axes.set_title(f"Sensitivity to the loss weights{_caveat(runs)}", loc="left", fontsize=9)
    return figure


def classes(runs: Sequence[Run]) -> Figure | None:
    """Difference of each class's AP, LGD less its baseline: of the first such pair in the records' order."""
    records = [run.record for run in runs]
    for arm in dict.fromkeys(arm_of(r) for r in records if r.experiment.method.name == "lgd"):
        ours, base = (
            finished(records, arm),
            finished(records, next(reference_of(r) for r in records if arm_of(r) == arm)),
        )
        found = _class_differences(ours, base)
        if found:
            break
    else:
        return None
    ordered = sorted(found.items(), key=lambda x: fmean(x[1]))
    cut = len(ordered) > MOST_CLASSES
    if cut:
        ordered = ordered[: MOST_CLASSES // 2] + ordered[-MOST_CLASSES // 2 :]
    figure = _figure(6.0, 1.1 + 0.22 * len(ordered))
    axes = figure.subplots()
    for height, (_, values) in enumerate(ordered):
        each = mean_interval(values, CONFIDENCE)
        if each is None:
            continue
        axes.barh(height, each.mean, height=0.65, color=BLUE if each.mean >= 0 else ORANGE)
        if each.low is not None and each.high is not None:
            axes.plot([each.low, each.high], [height, height], color=BLACK, linewidth=1.0)
    _names(axes, [name for name, _ in ordered])
    axes.axvline(0, color=BLACK, linewidth=0.8)
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_xlabel(f"AP over the baseline's, points (line: {CONFIDENCE:.0%} t interval over seeds)")
    some = f", the {MOST_CLASSES // 2} at each end" if cut else ""
    axes.set_title(f"{_short(arm, 40)}, class by class{some}{_caveat(runs)}", loc="left", fontsize=9)
    return figure


FIGURES: Mapping[str, Callable[[Sequence[Run]], Figure | None]] = {
    "pareto": pareto,
    "gains": gains,
    "cost": cost_stack,
    "curves": curves,
    "loss-weights": loss_weights,
    "classes": classes,
}


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


def _mean(records: Sequence[Record], arm: str, value: Callable[[Record], float | None]) -> float:
    return fmean(by_seed(finished(records, arm), value).values())


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine())


def _names(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), ["\n".join(textwrap.wrap(x, 30)) or "(no name)" for x in names], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def _short(text: str, width: int) -> str:
    return textwrap.shorten(text, width, placeholder="…") or "(no name)"


def _caveat(runs: Sequence[Run]) -> str:
    return "" if is_reproduction(run.record for run in runs) else " (not a reproduction of the paper)"
