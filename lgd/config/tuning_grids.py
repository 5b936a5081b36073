"""Grids over one number of the schedule: is the comparison fair at the preset's learning rate, and at its length?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lgd.config.arms import Arm, Grid
from lgd.config.experiment import STEPS

RATE_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Learning rates of the grid ``learning-rate``, as multiples of the preset's."""

LENGTH_FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Steps of the grid ``schedule-length``, as multiples of the preset's."""

EQUAL_COST_FACTORS = (16.0, 18.0)
"""Steps of its baselines on request: what the arms of the greatest length cost, 18 for an R-CNN, whose arms cost more
than twice its baseline."""


def learning_rate(baseline: Arm, *arms: Arm) -> Grid:
    """Each arm at each learning rate, compared with the baseline at the same rate."""
    return Grid(
        name="learning-rate",
        title="Learning rates: does each arm have its best?",
        arms=at_each((baseline, *arms), "rate", RATE_FACTORS, ("schedule.lr_per_16", "schedule.lr")),
        reference="",
    )


def schedule_length(baseline: Arm, *arms: Arm, more: Sequence[Arm] = ()) -> Grid:
    """Each arm at each length, compared with the baseline of the same length; those of ``more`` on request.

    Milestones, frozen phase and start of the distillation are fractions of the steps, so each length has its own decay.
    Longer baselines, on request, are what the longest arms are held against at equal cost.
    """
    keys = (STEPS, "evaluation.every")  # As many evaluations as at the preset's length.
    longest = at_each((baseline,), "steps", EQUAL_COST_FACTORS, keys)
    further = at_each((baseline, *more), "steps", LENGTH_FACTORS, keys)
    return Grid(
        name="schedule-length",
        title="Lengths of training: who is ahead, and from how many steps on?",
        arms=(
            *at_each((baseline, *arms), "steps", LENGTH_FACTORS, keys),
            *(replace(arm, on_request=True, question="what the longest cost buys the baseline") for arm in longest),
            *(replace(arm, on_request=True) for arm in further if arm.changes != baseline.changes),
        ),
        reference="",
    )


def at_each(arms: Sequence[Arm], what: str, factors: Sequence[float], keys: Sequence[str]) -> tuple[Arm, ...]:
    """Every arm with the settings ``keys`` multiplied by each factor. At factor 1 it keeps its name."""
    return tuple(_scaled(arm, arms[0], what, factor, dict.fromkeys(keys, factor)) for factor in factors for arm in arms)


def _scaled(arm: Arm, baseline: Arm, what: str, factor: float, factors: Mapping[str, float]) -> Arm:
    if factor == 1:
        return replace(arm, reference=baseline.name)
    suffix = f" at {factor:g}x {what}"
    reference = baseline.name if arm is baseline else f"{baseline.name}{suffix}"
    return replace(arm, name=f"{arm.name}{suffix}", factors=factors, reference=reference, answers=False)
