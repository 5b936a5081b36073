"""Grids of every method on one detector: after equal steps, and for equal device-hours."""

from __future__ import annotations

from dataclasses import replace

from lgd.config.arms import Arm, Grid
from lgd.config.experiment import Experiment
from lgd.config.method import BUILT_IN, make, method_class
from lgd.config.pays_grid import FIRST_STAGES

METHODS, METHODS_BY_COST = "methods", "methods-by-cost"

SEEDS = 3

COSTLIEST = "labelenc"
"""The method whose cost every other one gets: its first stage alone takes longer than the student of any other."""


def methods_grid(base: Experiment) -> Grid:
    """An arm for each of our methods, each with its own defaults. base: the preset's experiment."""
    return Grid(METHODS, "Every method, equal steps", tuple(_arms(base)), seeds=SEEDS)


def methods_by_cost(base: Experiment) -> Grid:
    """The same, then each for the device-hours of the costliest, what is trained before included."""
    arms, costliest = _arms(base), method_class(COSTLIEST).title
    longer = [
        replace(
            arm, name=at_equal_cost(arm.name), question=f"for the device-hours of {costliest}",
            time_budget_from=costliest, steps_from=arm.name, pays_for_teacher=True, reference=at_equal_cost("baseline"),
        )
        for arm in arms
        if arm.name != costliest and not arm.skipped
    ]  # fmt: skip
    first = [replace(x, reference=at_equal_cost("baseline")) if x.name == costliest else x for x in arms]
    return Grid(METHODS_BY_COST, "Every method, equal device-hours", (*first, *longer), seeds=SEEDS)


def at_equal_cost(arm: str) -> str:
    """The name of an arm that is trained for the cost of the costliest."""
    return f"{arm} at equal cost"


def _arms(base: Experiment) -> list[Arm]:
    found = []
    for name in BUILT_IN:
        if name in FIRST_STAGES:
            continue
        method = make(name)
        arm = Arm(
            method.title,
            {"method.name": name},
            f"learns from {method.learns_from}",
            # Read by a method whose teacher can be evaluated.
            {"evaluation.teacher": True},
            skipped=method.refusal(base.detector, base.schedule),
            answers=method.has_distillation,
        )
        found.append(arm)
    return found
