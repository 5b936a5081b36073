"""What a results directory is asked: which arms are to be worth their cost, and what each is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.grid_runs import as_shown, reference_of
from analysis.load import arm_of, by_arm, by_seed, finished, identity, score
from analysis.rates import Curve, pairs, rate_curves
from analysis.stats.differences import CONFIDENCE, FEW_SEEDS, Difference, paired_difference
from analysis.stats.sequential import confidence_at_each_look
from lgd.config.arms import Grid
from lgd.config.experiment import Experiment
from lgd.config.extra_arms import again, questioned
from lgd.errors import InputError
from lgd.results.record import Record
from lgd.results.sweep_spec import MIN_GAIN, SWEEP_FILE, SweepSpec

MOST_QUESTIONS = 3
"""Arms that have a verdict each where none is marked; of more on the same data, the one that gains most has one."""


@dataclass(frozen=True)
class Question:
    """Is ``arm`` worth its cost over ``reference``? Names of arms, "" for those that are not there."""

    arm: str
    reference: str
    equal_cost: str = ""
    """The reference trained for as much as ``arm`` cost, also where the sweep has yet to train it."""
    bigger: str = ""
    without_imitation: str = ""
    """``arm`` with nothing imitated."""
    again: str = ""
    """The reference with other seeds."""
    best_of: int = 1
    """Of how many arms it gains most, if it was chosen for that."""
    obstacles: tuple[str, ...] = ()
    """What keeps the comparison from being fair, a clause each."""
    best_rates: bool = False
    """Whether both arms are those of their best learning rates."""


@dataclass(frozen=True)
class Asked:
    """The questions of a directory."""

    questions: tuple[Question, ...]
    min_gain: float = MIN_GAIN
    confidence: float = CONFIDENCE
    """Of each interval, the looks of ``--until-decided`` counted in."""
    looks: tuple[int, ...] = ()
    seeds: int = 0
    """That the sweep trains for now; 0 without a sweep."""
    equal_cost_possible: bool = False
    """Whether the sweep is of a grid, to which ``--equal-cost`` can add an arm."""


def asked(directory: Path, records: Sequence[Record]) -> Asked:
    """What ``sweep.json`` in ``directory`` asks; without it, every recorded method over its baseline.

    Raises InputError as :func:`analysis.load.finished` where the arm that gains most is looked for.
    """
    try:
        spec = SweepSpec.read(directory) if (directory / SWEEP_FILE).exists() else None
        grid = spec.whole_grid if spec else None
    except InputError:
        # Of a grid that is not known here: its records still tell.
        spec = grid = None
    questions = _questions(records, grid, spec.arms if spec else ())
    if spec is None:
        return Asked(tuple(questions))
    confidence = confidence_at_each_look(spec.looks)
    return Asked(tuple(questions), spec.min_gain, confidence, spec.looks, spec.seeds, spec.search is None)


def _questions(records: Sequence[Record], grid: Grid | None, planned: Sequence[str]) -> list[Question]:
    """planned: the arms that the sweep trains."""
    done = [x for x in records if x.status == "finished"]
    # With those that diverged: no arm is at its best rate there.
    curves, alone = rate_curves(records), all_without_imitation(done)
    # Also an arm that failed in every seed has a verdict: that one.
    of_arm = by_arm(x for x in records if x.status in ("finished", "diverged", "failed"))
    if grid is not None:
        grid = as_shown(grid, (x for runs in of_arm.values() for x in runs))
        of = {arm.name: grid.references[arm.name] for arm in grid.arms}
        chosen = [arm.name for arm in questioned(grid) if arm.name in of_arm]
        budgets = {arm.name: (arm.time_budget_from, arm.steps_from) for arm in grid.arms if arm.time_budget_from}
    else:
        of, chosen, budgets = {}, [], {}
    of |= {arm: reference_of(runs[0]) for arm, runs in of_arm.items() if arm not in of}
    best_of = 1
    if not chosen:
        methods = {arm for arm, runs in of_arm.items() if runs[0].experiment.method.name != "baseline"}
        controls = set(alone.values())
        chosen = sorted(x for x in methods - controls if of[x] in of_arm and of[x] != x)
        if len(chosen) > MOST_QUESTIONS:
            chosen, best_of = _best(chosen, of, by_arm(done))
    found, names = list[Question](), {arm_of(x) for x in done}
    for name in chosen:
        reference = of[name]
        equal = {
            steps_from: arm
            for arm, (budget, steps_from) in budgets.items()
            if budget == name and (arm in of_arm or arm in planned)
        }
        question = Question(
            name, reference, equal.pop(reference, ""), next(iter(equal.values()), ""),
            alone.get(name, ""), again(reference) if again(reference) in names else "", best_of,
        )  # fmt: skip
        found.append(_at_best_rates(question, of_arm, curves))
    return found


def _best(arms: Sequence[str], of: Mapping[str, str], runs: Mapping[str, Sequence[Record]]) -> tuple[list[str], int]:
    """The arm with the largest mean gain over its own reference, and of how many arms; all arms, and 1, where their
    references were trained on different data, or none has a gain.

    of: the reference of each arm. runs: finished ones. Where any arm has FEW_SEEDS pairs, those of fewer, whose means
    are more often the largest by chance, are left out.
    """
    data = {identity(runs[of[arm]][0].experiment).data for arm in arms if of[arm] in runs}
    gains = {arm: gain for arm in arms if (gain := _gain(arm, of[arm], runs)) is not None}
    if len(data) > 1 or not gains:
        return list(arms), 1
    known = {arm: gain for arm, gain in gains.items() if gain.n >= FEW_SEEDS} or gains
    return [max(known, key=lambda arm: known[arm].mean)], len(known)


def _gain(arm: str, reference: str, runs: Mapping[str, Sequence[Record]]) -> Difference | None:
    ours, theirs = (by_seed(finished(runs.get(name, ()), name), score("AP")) for name in (arm, reference))
    return paired_difference(ours, theirs)


def all_without_imitation(records: Sequence[Record]) -> dict[str, str]:
    """By arm, the one that is the same but for its distillation loss, whose weight is 0; of arms for which that was
    trained, in the order of the records."""
    own: dict[str, Experiment] = {}
    named: dict[Experiment, str] = {}
    for record in records:
        experiment, arm = identity(record.experiment), arm_of(record)
        own.setdefault(arm, experiment)
        named.setdefault(experiment, arm)
    found = {}
    for arm, experiment in own.items():
        if getattr(experiment.method, "distill_weight", 0.0):
            method = experiment.method.model_copy(update={"distill_weight": 0.0})
            if without := named.get(experiment.model_copy(update={"method": method})):
                found[arm] = without
    return found


def _at_best_rates(question: Question, runs: Mapping[str, Sequence[Record]], curves: Sequence[Curve]) -> Question:
    """The question with what the learning rates say: both arms at their best rate, or why they do not compare.

    runs: by arm, those without a result, too.
    """
    named = {curve.name: curve for curve in curves}
    arm, base = named.get(question.arm), named.get(question.reference)
    if arm is not None and base is not None and (base, arm) in pairs(curves):
        edges = [f"{x.name} is best at the {x.edge} learning rate tried" for x in (base, arm) if x.edge]
        if base.best == arm.best and question.arm == arm.arms[arm.best]:
            return replace(question, obstacles=tuple(edges))
        # What else it is compared with was trained at another rate.
        return Question(
            arm.arms[arm.best], base.arms[base.best], best_of=question.best_of, obstacles=tuple(edges), best_rates=True
        )
    rates = {
        name: sorted({x.experiment.schedule.resolved_lr for x in runs.get(name, ())})
        for name in (question.arm, question.reference)
    }
    if all(rates.values()) and rates[question.arm] != rates[question.reference]:
        shown = " and ".join(f"{x[0]:g}" for x in rates.values())
        return replace(question, obstacles=(f"they were trained at unequal learning rates ({shown})",))
    return question
