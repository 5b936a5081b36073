"""Arms that a command adds to any grid: what the same cost buys otherwise, and what no difference looks like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, get_args

from lgd.config.arms import Arm, Grid
from lgd.config.detector import NO_WEIGHTS
from lgd.config.experiment import Experiment
from lgd.config.frozen_teacher import deeper
from lgd.config.settings import Settings, settings

EqualCost = Literal["longer", "bigger"]
EQUAL_COST: tuple[EqualCost, ...] = get_args(EqualCost)

AGAIN_SEEDS = 100_000
"""Added to the seeds of a baseline's second training."""


class ExtraArms(Settings):
    """Arms that are added to a grid."""

    equal_cost: tuple[EqualCost, ...] = ()
    """``longer``: the baseline trained for as many device-seconds as an arm took. ``bigger``: the baseline on the next
    larger backbone, for as many."""
    again: bool = False
    """The baseline once more, with other seeds (an A/A comparison)."""


EVERY = ExtraArms(equal_cost=EQUAL_COST, again=True)


def with_extra_arms(grid: Grid, extra: ExtraArms, base: Experiment) -> Grid:
    """``grid`` with the arms that ``extra`` names, at the end. base: the preset's experiment.

    An arm that the grid has itself (evidence trains baselines in equal time) is not added once more.
    """
    added = list(_added(grid, extra, base))
    return replace(grid, arms=(*grid.arms, *added)) if added else grid


def _added(grid: Grid, extra: ExtraArms, base: Experiment) -> Iterator[Arm]:
    arms = {arm.name: arm for arm in grid.arms if not arm.skipped}
    if extra.again:
        references = dict.fromkeys(grid.references.values())
        for name in (x for x in references if x in arms and not arms[x].factors):
            yield replace(
                arms[name], name=again(name), reference=name, seed_offset=AGAIN_SEEDS, training=None,
                question="the same with other seeds: what no difference looks like",
            )  # fmt: skip
    there = {(arm.time_budget_from, arm.steps_from) for arm in grid.arms}
    for arm in questioned(grid):
        reference = arms[grid.references[arm.name]]
        if "longer" in extra.equal_cost and (arm.name, reference.name) not in there:
            yield _equal_cost(reference, arm, reference.name)
        larger = bigger(base, reference) if "bigger" in extra.equal_cost else {}
        if larger:
            big = replace(
                reference, name=BIGGER + reference.name, changes={**reference.changes, **larger},
                question=f"on {larger['detector.backbone.name']}", reference=reference.name, training=None,
                on_request=arm.on_request,
            )  # fmt: skip
            if big.name not in arms:
                arms[big.name] = big
                yield big
            yield _equal_cost(big, arm, reference.name)


def _equal_cost(trained: Arm, arm: Arm, reference: str) -> Arm:
    """``trained`` for as many device-seconds as ``arm``."""
    return replace(
        trained, name=f"{trained.name} at the cost of {arm.name}", question=f"for as many device-seconds as {arm.name}",
        time_budget_from=arm.name, steps_from=trained.name, reference=reference, training=None, answers=False,
        on_request=arm.on_request,
    )  # fmt: skip


def questioned(grid: Grid) -> list[Arm]:
    """The arms whose worth a grid asks for: those marked so; in a table of the paper, those that distil."""
    marked = [arm for arm in grid.arms if arm.answers and not arm.skipped]
    references = grid.references
    return marked or [
        arm
        for arm in grid.arms
        if arm.training is not None and not arm.skipped and references[arm.name] not in ("", arm.name)
    ]


BIGGER = "bigger "
"""What the name of a baseline on a larger backbone begins with."""


def again(name: str) -> str:
    """The name of a baseline's second training."""
    return f"{name} again"


def is_again(name: str) -> bool:
    return name.endswith(again(""))


def is_bigger(name: str) -> bool:
    return name.startswith(BIGGER)


def bigger(base: Experiment, arm: Arm) -> dict[str, Any]:
    """The settings of the next larger backbone; empty where none is known, or none with weights where ours has them."""
    detector = base.override(arm.setting).detector
    larger = deeper(detector.backbone)
    if larger.name == detector.backbone.name or larger.from_scratch != detector.backbone.from_scratch:
        return {}
    if detector.weights != NO_WEIGHTS:
        # Those of the whole detector do not fit another backbone.
        return {}
    before, after = settings(detector.backbone), settings(larger)
    return {f"detector.backbone.{key}": value for key, value in after.items() if value != before[key]}
