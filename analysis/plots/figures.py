"""Every figure that records have the numbers for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from analysis.grid_runs import reference_of
from analysis.load import Run, arm_of
from analysis.plots.costs import cost_stack, pareto
from analysis.plots.hours import ap_against_hours, performance_profile
from analysis.plots.scores import classes, curves, gains, loss_weights
from analysis.plots.style import STYLE, WIDE, Layout, save
from analysis.plots.teachers import label_signal
from analysis.plots.tuning import distill_weights, learning_rates, schedule_lengths
from analysis.plots.verdict import gain_against_cost
from analysis.plots.when import gain_by_data, imitation_against_lead

FIGURES: Mapping[str, Callable[[Sequence[Run], Layout], Figure | None]] = {
    "gain-against-cost": gain_against_cost,
    "pareto": pareto,
    "gains": gains,
    "cost": cost_stack,
    "curves": curves,
    "ap-hours": ap_against_hours,
    "loss-weights": loss_weights,
    "learning-rate": learning_rates,
    "schedule-length": schedule_lengths,
    "distill-weight": distill_weights,
    "gain-by-data": gain_by_data,
    "imitation-lead": imitation_against_lead,
    "profile": performance_profile,
    "classes": classes,
    "label-signal": label_signal,
}


def draw(runs: Sequence[Run], directory: Path) -> list[Path]:
    """Draw every figure that the records have the numbers for; their paths. What cannot be drawn is left out."""
    drawn = {name: save(figure, directory / name) for name, figure in figures(runs)}
    for name in FIGURES.keys() - drawn.keys():
        for suffix in (".png", ".svg"):
            # One of an earlier state of the directory would pass for this one's.
            (directory / (name + suffix)).unlink(missing_ok=True)
    return [path for paths in drawn.values() for path in paths]


def figures(
    runs: Sequence[Run], layout: Layout = WIDE, names: Iterable[str] = tuple(FIGURES)
) -> Iterator[tuple[str, Figure]]:
    """Each figure of ``names`` that there is something for, with its name, to be saved before the next is asked for."""
    ordered = sorted(runs, key=_order)
    for name in names:
        with mpl.rc_context(STYLE):
            figure = FIGURES[name](ordered, layout)
            if figure is not None:
                yield name, figure


def _order(run: Run) -> tuple[object, ...]:
    """Arms of one reference together, the reference first."""
    arm, reference = arm_of(run.record), reference_of(run.record)
    return run.record.preset, reference, arm != reference, arm, run.record.experiment.seed
