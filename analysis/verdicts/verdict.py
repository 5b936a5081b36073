"""The verdict on an arm: what it gains for what it costs, whether the same cost buys more otherwise, and why that
cannot be said where it cannot. Built from records alone; loads neither torch nor pandas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from analysis.costs import cost_of_longer, cost_ratio, extra_cost
from analysis.load import arm_of, by_seed, finished, score, seed_of
from analysis.stats.differences import CONFIDENCE, FEW_SEEDS, Difference, paired_difference
from analysis.stats.power import seeds_for, seeds_for_width
from analysis.stats.sequential import confidence_at_each_look, predictive_power
from analysis.verdicts.questions import Asked, Question
from lgd.results.record import Record

FLOOR, CEILING = 5.0, 95.0
"""AP, percent: below, or above, both arms say nothing about each other."""

SAME_COST = 0.1
"""Relative difference up to which two costs are called the same."""

Answer = Literal["worth it", "not worth it", "gain", "unknown"]
"""``gain``: more AP than the reference beyond noise; what the same cost buys otherwise was not measured."""

Seconds = Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """The answer to a question, with its numbers: differences in points of AP, paired by seed; None for what was not
    trained."""

    question: Question
    min_gain: float
    answer: Answer
    gain: Difference | None
    cost: float | None
    """Device-seconds of the arm's training, its frozen teacher's included, over the reference's, both of the seeds that
    ran on like hardware; None without one."""
    extra_hours: float | None
    """The difference of the two, device-hours, median over the same seeds; None without one."""
    on_gpu: bool
    equal_cost: Difference | None = None
    """The longer trained reference over the reference."""
    equal_cost_ratio: float | None = None
    """What it cost over what the arm did: 1 where the steps were chosen well."""
    equal_cost_measured: float | None = None
    """What was measured of that, where the processes got other parts of the cores and the ratio is by the steps."""
    bigger: Difference | None = None
    """The larger baseline at the same cost over the reference."""
    margin: Difference | None = None
    """The arm over the longer trained reference."""
    second_loss: Difference | None = None
    """Without imitation over the reference; of the seeds that the arm has, too."""
    imitation: Difference | None = None
    """The arm over itself without imitation, of the same seeds: both together are the gain over these."""
    again: Difference | None = None
    """The reference with other seeds over the reference."""
    lengths_known: bool = False
    """Whether the grid ``schedule-length`` has longer baselines: its table of lengths says what the same cost buys."""
    awaited: bool = False
    """Whether the longer training that was asked for has no result yet, and the answer waits for it."""
    lost: tuple[str, ...] = ()
    """The arms among those compared that diverged or failed in every seed, a clause each."""
    obstacles: tuple[str, ...] = ()
    """Why the comparison cannot be trusted, a clause each."""
    as_trained: Answer = "unknown"
    """The answer for trainings as short as these, where a teacher that never led is all that is in the way of one."""
    remarks: tuple[str, ...] = ()
    """Notes on it."""
    more_seeds: int | None = None
    """How many more seeds it takes to tell; None where that is not what is missing, or cannot be told yet."""

    @property
    def decisive(self) -> Difference | None:
        """The decisive one of the differences to the longer trained and to the plain reference."""
        return _decisive(self.gain, self.margin, self.as_trained if self.answer == "unknown" else self.answer)

    @property
    def decided(self) -> bool:
        """Whether more seeds would change nothing."""
        return self.answer != "unknown" or bool(self.obstacles)


def verdicts(records: Sequence[Record], asked: Asked) -> list[Verdict]:
    """One for each question. Raises InputError as :func:`analysis.load.finished`."""
    return [_verdict(records, question, asked) for question in asked.questions]


def _verdict(records: Sequence[Record], question: Question, asked: Asked) -> Verdict:
    arm, reference, longer = question.arm, question.reference, question.equal_cost
    runs = {
        name: finished(records, name)
        for name in (arm, reference, longer, question.bigger, question.again, question.without_imitation)
        if name
    }
    difference = _differences(runs, question, asked)
    cost, extra = cost_ratio(runs[arm], runs[reference]), extra_cost(runs[arm], runs[reference])
    longer_cost = cost_of_longer(runs.get(longer, {}), runs[arm], runs[reference])
    longer_ratio = longer_cost.ratio if longer_cost else None
    gain, margin = difference(arm, reference), difference(arm, longer)
    answer = _answer(gain, margin, cost.value if cost else None, asked.min_gain)
    lost = {name: _lost_in_every_seed(records, name, asked.seeds) for name in (arm, reference, longer) if name}
    awaited = answer == "gain" and bool(longer) and not lost[longer]
    answer = "unknown" if awaited else answer
    obstacles, remarks = _obstacles_and_remarks(records, question, runs, answer)
    obstacles = [*question.obstacles, *filter(None, (lost[arm], lost[reference])), *obstacles]
    if answer != _answer(gain, None, None, asked.min_gain):
        obstacles += _unequal_cost(question, answer, margin, longer_ratio)
    teacher = _teacher(runs[arm].values(), arm)
    as_trained: Answer = answer if teacher and not obstacles else "unknown"
    if teacher:
        # A gain that is there although the teacher never led is a gain; a loss says nothing of a better teacher.
        (remarks if answer in ("worth it", "gain") else obstacles).append(teacher)
    is_open = answer == "unknown" and not obstacles and not awaited
    both = [*runs[arm].values(), *runs[reference].values()]
    return Verdict(
        question, asked.min_gain, "unknown" if obstacles else answer, gain,
        cost.value if cost else None, None if extra is None else extra / 3600,
        bool(both) and all(x.hardware.get("gpu", "none") != "none" for x in both),
        difference(longer, reference), longer_ratio, longer_cost.measured if longer_cost else None,
        difference(question.bigger, reference), margin,
        difference(question.without_imitation, reference, arm),
        difference(arm, question.without_imitation, reference),
        difference(question.again, reference), _has_longer(records, runs[reference]), awaited,
        tuple(filter(None, lost.values())), tuple(obstacles), as_trained, tuple(remarks),
        _more_seeds(_decisive(gain, margin, answer), asked.min_gain) if is_open else None,
    )  # fmt: skip


def _differences(
    runs: Mapping[str, Mapping[int, Record]], question: Question, asked: Asked
) -> Callable[..., Difference | None]:
    """The difference in AP of two arms by name, over the seeds that further ones have, too."""
    # One of several, chosen since it is the best: its intervals, at all looks, pay for the choice (Bonferroni).
    confidence = confidence_at_each_look(asked.looks, 1 - (1 - CONFIDENCE) / question.best_of)

    def difference(one: str, other: str, *others: str) -> Difference | None:
        aps = [by_seed(runs.get(name, {}), score("AP")) for name in (one, other, *others)]
        common = set.intersection(*map(set, aps))
        ours, theirs = ({seed: ap for seed, ap in of.items() if seed in common} for of in aps[:2])
        return paired_difference(ours, theirs, confidence)

    return difference


def _obstacles_and_remarks(
    records: Sequence[Record], question: Question, runs: Mapping[str, Mapping[int, Record]], answer: Answer
) -> tuple[list[str], list[str]]:
    """Clauses on what keeps the arms' numbers from being trusted, and on what else belongs to the answer."""
    arm, reference = question.arm, question.reference
    obstacles, remarks = _out_of_range(runs[arm], runs[reference]), _unpaid_teacher(runs[arm].values(), answer)
    sides: list[tuple[str, str, tuple[Answer, ...]]] = [
        (arm, reference, ("worth it", "gain")), (reference, arm, ("not worth it",)),
    ]  # fmt: skip
    if question.equal_cost:
        sides.append((question.equal_cost, arm, ("not worth it",)))
    for name, other, favoured in sides:
        # Of an arm without a result there is nothing that they could favour.
        diverged, failed = _lost(records, name, runs[name], runs[other]) if runs[name] else ([], [])
        # Those that diverged are not missing by chance: what is left favours this side.
        (obstacles if answer in favoured else remarks).extend(diverged)
        remarks += failed
    return obstacles, remarks


def _is_judged(found: Difference) -> bool:
    return found.low is not None and found.n >= FEW_SEEDS


def _decisive(gain: Difference | None, margin: Difference | None, answer: Answer) -> Difference | None:
    """The difference that the answer, or its lack, is due to.

    An arm must beat the longer trained reference and the plain one, which may be better: the one with the lower end
    decides, where it is not worth it with the lower upper end. Where nothing can be said, one of too few seeds does.
    """
    found = [x for x in (margin, gain) if x is not None]
    few = [x for x in found if not _is_judged(x)]
    if answer == "unknown" and few:
        return min(few, key=lambda x: x.n)
    found = [x for x in found if x not in few]
    return min(found, key=_high if answer == "not worth it" else _low, default=None)


def _low(found: Difference) -> float:
    return found.mean if found.low is None else found.low


def _high(found: Difference) -> float:
    return found.mean if found.high is None else found.high


def _answer(gain: Difference | None, margin: Difference | None, cost: float | None, min_gain: float) -> Answer:
    """What the intervals say: one lies below the smallest difference that matters, or else all lie above zero.

    Each interval lies wholly above, or wholly below, its true difference in 2.5% of the cases at most, all looks of a
    sweep together (analysis/stats/sequential.py). So "worth it" is wrong in at most 2.5%, as both intervals must lie
    above zero. "not worth it" is wrong in at most 2.5% for each difference, 5% for the two together, as either decides.
    """
    found = [x for x in (margin, gain) if x is not None]
    judged = [x for x in found if _is_judged(x)]
    if any(_high(x) < min_gain for x in judged):
        return "not worth it"
    if judged and len(judged) == len(found) and all(_low(x) > 0 for x in judged):
        return "worth it" if margin or (cost is not None and cost <= 1 + SAME_COST) else "gain"
    return "unknown"


def _unequal_cost(question: Question, answer: Answer, margin: Difference | None, ratio: float | None) -> list[str]:
    """A clause where the longer training cost so much less, or more, than the arm that this may be why one is ahead.

    answer: one that the plain reference alone would not give. ratio: the longer training's cost over the arm's, None
    where it is not known. An answer that is there although the costs favour the other side stands.
    """
    if margin is not None and ratio is None:
        return [
            f"{question.arm} and {question.reference} have no costs that compare (trained on unlike hardware, or not"
            " measured), so that what the longer training should have cost is not known"
        ]
    if margin is None or ratio is None or abs(ratio - 1) <= SAME_COST:
        return []
    if answer != ("not worth it" if ratio > 1 else "worth it"):
        return []
    return [f"the longer training of {question.reference} cost {ratio:.2f}x what {question.arm} did, not the same"]


def _lost(
    records: Iterable[Record], arm: str, runs: Mapping[int, Record], others: Mapping[int, Record]
) -> tuple[list[str], list[str]]:
    """A clause on the arm's seeds that diverged, and one on those that failed, of those that only ``others`` have."""
    ended: dict[str, set[int]] = {"diverged": set(), "failed": set()}
    for record in records:
        if record.status in ended and arm_of(record) == arm:
            ended[record.status] |= {seed_of(record)} & (others.keys() - runs.keys())
    diverged, failed = (
        [f"{len(seeds)} of {len(runs) + len(seeds)} seeds of {arm} {status}, which no interval counts"] if seeds else []
        for status, seeds in ended.items()
    )
    return diverged, failed


def _lost_in_every_seed(records: Iterable[Record], arm: str, seeds: int) -> str:
    """A clause where all of the arm's ``seeds`` seeds, or all that were begun if that is 0, diverged or failed."""
    ended = Counter(record.status for record in records if arm_of(record) == arm)
    diverged, failed, n = ended["diverged"], ended["failed"], ended.total()
    if not n or n < seeds or diverged + failed < n:
        return ""
    if diverged and failed:
        return f"of {n} seeds of {arm} {diverged} diverged and {failed} failed"
    return f"{'the one seed' if n == 1 else f'all {n} seeds'} of {arm} {'diverged' if diverged else 'failed'}"


def _unpaid_teacher(runs: Iterable[Record], answer: Answer) -> list[str]:
    """A clause where an arm that gains has a given teacher whose training nobody has said the cost of."""
    teachers = [x.pretraining for x in runs if x.pretraining]
    if answer not in ("worth it", "gain") or all(x.hours_known for x in teachers):
        return []
    return ["the training of its teacher is not in the cost: method.teacher.hours says what it took"]


def _out_of_range(arm: Mapping[int, Record], reference: Mapping[int, Record]) -> list[str]:
    means = [fmean(aps.values()) for runs in (arm, reference) if (aps := by_seed(runs, score("AP")))]
    if len(means) == 2 and max(means) < FLOOR:
        return [f"both are below AP {FLOOR:g}, where nothing has been learnt yet: train longer"]
    if len(means) == 2 and min(means) > CEILING:
        return [f"both are above AP {CEILING:g}, where nothing is left to gain: take harder data"]
    return []


def _has_longer(records: Iterable[Record], reference: Mapping[int, Record]) -> bool:
    steps = max((x.experiment.schedule.steps for x in reference.values()), default=0)
    return any(
        x.grid == "schedule-length"
        and x.status == "finished"
        and x.experiment.method.name == "baseline"
        and x.experiment.schedule.steps > steps > 0
        for x in records
    )


def _teacher(runs: Iterable[Record], arm: str) -> str:
    """A clause where the teacher of an arm never got better than its student in most of the runs that tell."""
    known = [x for x in (record.teacher_beat_student for record in runs) if x is not None]
    if not known or sum(known) * 2 >= len(known):
        return ""
    seeds = "" if not any(known) else f" in {len(known) - sum(known)} of {len(known)} seeds"
    return f"the teacher never beat the student{seeds}, which says nothing for or against {arm} at full length"


def _more_seeds(found: Difference | None, min_gain: float) -> int | None:
    """Seeds to add until the difference can be told; None where there are too few to know the spread."""
    if found is None or not _is_judged(found):
        return None
    spread = found.spread
    # With the mean as it is, so many decide: the interval then lies on one side of zero, or below what matters.
    clear = max(abs(found.mean), min_gain - found.mean)
    needed = max(seeds_for(min_gain, spread, found.confidence), seeds_for_width(clear, spread, found.confidence))
    return max(needed - found.n, 1)


def chance_to_decide(verdict: Verdict, more: int) -> float:
    """The chance of an answer after ``more`` seeds, at most, by the mean and spread of those that ran.

    Both differences are needed for a gain, either decides against it: the bounds of these chances, whatever their
    correlation is. 1 where there are too few seeds to know the spread.
    """
    found = [x for x in (verdict.gain, verdict.margin) if x is not None]
    if not found or any(x.n < FEW_SEEDS for x in found):
        return 1.0
    each = [predictive_power(x.mean, x.spread, x.n, more, x.confidence, verdict.min_gain) for x in found]
    return min(1.0, float(min(above for above, _ in each) + sum(below for _, below in each)))
