"""Grids of every method on one detector: after equal steps, for equal device-hours, and at several weights of its
distillation loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from lgd.config.arms import Arm, Grid
from lgd.config.experiment import Experiment, settings
from lgd.config.method import BUILT_IN, make, method_class
from lgd.config.pays_grid import FIRST_STAGES

METHODS, METHODS_BY_COST, DISTILL_WEIGHT = "methods", "methods-by-cost", "distill-weight"

SEEDS = 3

COSTLIEST = "labelenc"
"""The method whose cost every other one gets: its first stage alone takes longer than the student of any other. Not at
the paper's own length, where that stage is 1x, and a frozen R-101's training may cost more."""


WEIGHT_FACTORS = (0.001, 0.01, 0.1, 1.0)
"""Weights of the distillation loss in the grid ``distill-weight``, as multiples of each method's own."""

TUNING_SEEDS = 200_000
"""Added to the seeds of ``distill-weight``: what is chosen there is compared on seeds that it was not chosen on."""

CHOSEN_WEIGHTS: Mapping[str, Mapping[str, float]] = {
    "tiny": {"fgfi": 0.01, "pkd": 0.01, "cwd": 0.1, "mgd": 0.1, "fgd": 0.001, "labelenc": 0.1, "ban": 0.01, "dml": 0.1},
}
"""By preset and method: the largest of WEIGHT_FACTORS whose AP is within 1 of the method's best, where that is not 1;
from the kept study of ``distill-weight``. Published weights are for thousands of steps at lower learning rates: here
the gradients of the larger ones are clipped everywhere, and the student learns nothing else."""


def methods_grid(base: Experiment, size: str) -> Grid:
    """An arm for each of our methods, each with its own defaults but for CHOSEN_WEIGHTS.

    base: the experiment of the preset named ``size``.
    """
    return Grid(METHODS, "Every method, equal steps", tuple(_arms(base, size)), seeds=SEEDS)


def distill_weight_grid(base: Experiment) -> Grid:
    """Each method at each of WEIGHT_FACTORS, compared with the baseline."""
    arms = [replace(arm, answers=False, seed_offset=TUNING_SEEDS) for arm in _arms(base)]
    baseline = [arm for arm in arms if arm.changes["method.name"] == "baseline"]
    scaled = [
        _at_weight(arm, factor)
        for arm in arms
        if arm not in baseline
        for factor in ((1.0,) if arm.skipped else reversed(WEIGHT_FACTORS))
    ]
    return Grid(DISTILL_WEIGHT, "Weights of every method's distillation loss", (*baseline, *scaled))


def _at_weight(arm: Arm, factor: float) -> Arm:
    if factor == 1:
        return arm
    return replace(arm, name=f"{arm.name} at {factor:g}x weight", factors={"method.distill_weight": factor})


def methods_by_cost(base: Experiment, size: str) -> Grid:
    """The same as :func:`methods_grid`, then each for the device-hours of the costliest, what is trained before
    included."""
    arms, costliest = _arms(base, size), method_class(COSTLIEST).title
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


def _arms(base: Experiment, size: str = "") -> list[Arm]:
    """size: the preset whose CHOSEN_WEIGHTS are taken; "": each method's own."""
    found, chosen = [], CHOSEN_WEIGHTS.get(size, {})
    for name in BUILT_IN:
        if name in FIRST_STAGES:
            continue
        method = make(name)
        weight = {"method.distill_weight": chosen[name]} if name in chosen else {}
        arm = Arm(
            method.title,
            {"method.name": name},
            f"learns from {method.learns_from}" + (f"; {chosen[name]:g} of its weight" if weight else ""),
            # The first is read by a method whose teacher can be evaluated.
            {"evaluation.teacher": True, **weight},
            skipped=method.refusal(base.detector, base.schedule),
            answers=method.has_distillation,
        )
        found.append(arm)
        if settings(method).get("inherit", "none") != "none":
            found.append(_without_inheritance(arm))
    return found


def _without_inheritance(arm: Arm) -> Arm:
    """A method whose student starts from its teacher's FPN and head: what it is without these."""
    changes = {**arm.changes, "method.inherit": "none"}
    return replace(arm, name=f"{arm.name}, nothing inherited", changes=changes)
