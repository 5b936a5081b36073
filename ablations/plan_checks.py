"""What a new sweep's options may not say together. Loads neither torch nor Ray."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from lgd.config.arms import Arm, Grid
from lgd.config.experiment import Experiment, split_assignment
from lgd.config.extra_arms import ExtraArms, is_bigger, questioned
from lgd.errors import InputError

MOST_TRIALS = 10_000
"""Most trials of a sweep or samples of a search; more are refused as a typing error."""


OF_DETECTOR = ("method.context", "method.detach_appearance")
"""Settings of LGD that ``--detector`` brings along, whatever method is trained."""


def check_extra(extra: ExtraArms, chosen: Grid, own: Grid, names: Collection[str]) -> None:
    """Raise InputError where the arms asked for beside the grid's ``own`` would be left out without a word."""
    added = {arm.name for arm in chosen.arms[len(own.arms) :]}
    asked = [*(["--equal-cost"] if extra.equal_cost else []), *(["--a-a"] if extra.again else [])]
    if "bigger" in extra.equal_cost and questioned(own) and not any(is_bigger(arm.name) for arm in chosen.arms):
        raise InputError(
            "a bigger baseline: no larger backbone is known that starts from weights as this preset's does; without it,"
            " leave out --bigger, or say --equal-cost longer"
        )
    if not asked or added & set(names):
        return
    if any(arm.time_budget_from and arm.name in names for arm in own.arms):
        return
    why = (
        "--arms needs the baseline and the arm that it is for"
        if added
        else f"grid {own.name} has no arm that it is for"
    )
    raise InputError(f"{' and '.join(asked)}: {why}")


def check_bigger(extra: ExtraArms, base: Experiment) -> None:
    """Raise InputError for a bigger baseline of a detector whose backbone is not a setting."""
    if "bigger" in extra.equal_cost and not base.detector.is_built_in:
        raise InputError(
            f"a bigger baseline: which backbone of {base.detector.label} is larger is not known: leave out --bigger, or"
            " say --equal-cost longer"
        )


def check_numbers(seeds: int | None, min_gain: float | None) -> None:
    """Raise InputError for what is no number of seeds, or no difference."""
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds {seeds}: at least one")
    if min_gain is not None and not 0 < min_gain < math.inf:
        raise InputError(f"--min-gain {min_gain:g}: points of AP, above 0")


def check_question(looks: Sequence[int], chosen: Grid, names: Collection[str]) -> None:
    """Raise InputError where a sweep is to run until it is decided, and none of its arms is compared with another."""
    references = chosen.references
    if looks and not any(arm.name in names and references[arm.name] in names for arm in questioned(chosen)):
        raise InputError(
            f"--until-decided: of these arms of grid {chosen.name} none is compared with its baseline: leave it out, or"
            " choose other arms with --arms"
        )


def check_used(overrides: Sequence[str], arms: Iterable[Arm], base: Experiment) -> None:
    """Raise InputError for an assignment (``key=value``) of a method that neither an arm nor ``base`` has."""
    trained = [base]
    for name in {str(arm.changes["method.name"]) for arm in arms if "method.name" in arm.changes}:
        # A method that is not installed here has settings that nobody knows.
        with suppress(InputError):
            trained.append(base.override({"method.name": name}))
    kept = {x for experiment in trained for x in experiment.applicable(overrides)}
    brought = OF_DETECTOR if any(split_assignment(x)[0] == "detector.name" for x in overrides) else ()
    for assignment in overrides:
        if assignment not in kept and split_assignment(assignment)[0] not in brought:
            raise InputError(f"--set {assignment} has no effect: no arm has a method with this setting: leave it out")


def check_number(seeds: int, arms: int) -> None:
    """Raise InputError for more trials than a sweep has."""
    if seeds * arms > MOST_TRIALS:
        raise InputError(
            f"--seeds {seeds}: {seeds * arms:,} trials of {arms} arms; a sweep has at most {MOST_TRIALS:,}"
        )
