"""Verdicts as sentences, and what to run next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from analysis.grid_runs import reference_of
from analysis.load import by_arm, by_seed, finished, score
from analysis.render import over_seeds, points, with_unit
from analysis.stats.differences import CONFIDENCE, FEW_SEEDS, Difference, paired_difference
from analysis.stats.power import MOST_SEEDS
from analysis.verdicts.across import lines as across_lines
from analysis.verdicts.across import short_name
from analysis.verdicts.next_step import next_step
from analysis.verdicts.questions import Asked, asked
from analysis.verdicts.verdict import SAME_COST, Verdict, verdicts
from lgd.config.extra_arms import is_again
from lgd.config.grids import NOISE_FLOOR
from lgd.results.record import Record

PLAIN = "the baseline"

NO_PAIR = "it and its baseline have no finished seed in common yet"

MOST_VERDICTS = 4
"""Verdicts listed at most; of more, it is said how many came out which way, and what the largest gains are; the table
has the others' numbers."""


def sentence(verdict: Verdict) -> str:
    """What an arm gained for what, and whether that is worth it."""
    return f"{numbers(verdict)} {conclusion(verdict)}".lstrip()


def numbers(verdict: Verdict) -> str:
    """What an arm gained for what, and what the same cost buys otherwise; "" where nothing is known yet."""
    question, gain = verdict.question, verdict.gain
    if gain is None:
        return ""
    over = f" over {question.reference}, each at its best learning rate" if question.best_rates else ""
    seeds = f" over {_seeds(gain.n)}" if gain.n > 1 else ""
    parts = [f"{question.arm}{over}: {points(gain)}{seeds}{_cost(verdict)}"]
    if verdict.equal_cost:
        parts.append(
            f"{_same_cost(verdict)} on longer training of {question.reference}: {_counted(verdict.equal_cost, gain)}"
        )
    if verdict.bigger:
        parts.append(f"on a bigger backbone: {_counted(verdict.bigger, gain)}")
    if verdict.margin:
        parts.append(f"{question.arm} over longer training: {_counted(verdict.margin, gain)}")
    return f"{'; '.join(parts)}."


def _counted(found: Difference, gain: Difference) -> str:
    """A difference, with its number of seeds where the gain is over another."""
    text = over_seeds(found)
    return text if found.n in (1, gain.n) else f"{text} ({_seeds(found.n)})"


def conclusion(verdict: Verdict) -> str:
    """The last sentence of a verdict."""
    arm, min_gain = verdict.question.arm, f"{verdict.min_gain:g} AP"
    remarks = "".join(f" But {x}." for x in verdict.remarks)
    found, against = verdict.decisive, _against(verdict)
    if found is None:
        return f"{arm}: no verdict, for {'; '.join(verdict.lost) or NO_PAIR}."
    if verdict.answer == "worth it":
        return f"{arm} is worth it here.{remarks}"
    if verdict.answer == "gain" and verdict.lengths_known:
        lengths = "what the same cost buys in longer training is in the table of lengths"
        return f"{arm} gains at equal steps; {lengths}.{remarks}"
    if verdict.answer == "gain":
        unknown = f"is not known: {'; '.join(verdict.lost)}" if verdict.lost else "was not measured (--equal-cost)"
        return f"{arm} gains; whether the same cost spent on longer training gains more {unknown}.{remarks}"
    why = f"it is not {min_gain} or more ahead of {against}"
    if found.high is not None and found.high < 0:
        why = "it loses AP" if against == PLAIN else "longer training is the better use of that cost"
    elif found.low is not None and found.low > 0:
        why = f"it {'gains' if against == PLAIN else 'is ahead of longer training'}, but by less than {min_gain}"
    if verdict.answer == "not worth it":
        return f"{arm} is not worth it here: {why}.{remarks}"
    reason = "; ".join(reasons(verdict))
    if verdict.as_trained == "not worth it":
        return f"{arm} is not worth it as trained here: {why}. That is no verdict on {arm} itself: {reason}."
    return f"Whether {arm} is worth it here cannot be said: {reason}."


def reasons(verdict: Verdict) -> list[str]:
    """Why there is no answer, a clause each."""
    if verdict.obstacles:
        return list(verdict.obstacles)
    found = verdict.decisive
    if found is None:
        return []
    if verdict.awaited:
        return [f"it gains, and {verdict.question.equal_cost} has no result yet"]
    if found.n < FEW_SEEDS:
        tell = "tells" if found.n == 1 else "tell"
        nothing = f"{tell} nothing of the spread between seeds, at least {FEW_SEEDS} are needed"
        if verdict.gain is None or found.n == verdict.gain.n:
            return [f"{_seeds(found.n)} {nothing}"]
        return [f"the difference to {_against(verdict)} is known from {_seeds(found.n)}, which {nothing}"]
    text = f"the difference to {_against(verdict)} may be nothing, or {verdict.min_gain:g} AP and more"
    if verdict.more_seeds is None:
        return [text]
    more = verdict.more_seeds
    if found.n + more >= MOST_SEEDS:
        return [
            f"{text}; more than {MOST_SEEDS:,} seeds would be needed, as the {_seeds(found.n)} spread by"
            f" {found.spread:.1f} AP"
        ]
    return [
        f"{text}; about {more} more seed{'s' * (more != 1)} ({found.n + more} in all) would tell with 80% power, as the"
        f" {_seeds(found.n)} spread by {found.spread:.1f} AP"
    ]


def _against(verdict: Verdict) -> str:
    """What the decisive difference is taken to."""
    return PLAIN if verdict.decisive is verdict.gain else "longer training"


def parts(verdict: Verdict) -> str:
    """What the gain is made of: more training, a second loss, imitation; "" where that was not trained."""
    gain = verdict.gain
    if gain is None or verdict.second_loss is None or verdict.imitation is None:
        return ""
    more = f"; more training at the same cost gives {_counted(verdict.equal_cost, gain)}" if verdict.equal_cost else ""
    return (
        f"{verdict.question.arm}'s gain is {_counted(verdict.second_loss, gain)} from its second loss"
        f" ({verdict.question.without_imitation}) and {_counted(verdict.imitation, gain)} from imitation{more}."
    )


def notes(verdict: Verdict, asked: Asked) -> list[str]:
    """What else belongs to a verdict, a line each."""
    lines = [parts(verdict)]
    if verdict.again:
        lines.append(_again_text(verdict.question.reference, verdict.again))
    gain, best_of = verdict.gain, verdict.question.best_of
    if best_of > 1:
        several = f" with {FEW_SEEDS} seeds or more" if gain and gain.n >= FEW_SEEDS else ""
        lines.append(
            f"{verdict.question.arm} is the best of {best_of} arms{several} by its mean gain; its interval is widened"
            " for the choice (Bonferroni)."
        )
    if asked.looks:
        lines.append(
            f"Looks planned after {', '.join(map(str, asked.looks))} seeds: each interval is one of"
            f" {asked.confidence:.1%}, so that a difference's intervals at all looks hold together with"
            f" {CONFIDENCE:.0%}; others hold for one look."
        )
        if gain and gain.n >= FEW_SEEDS and gain.n not in asked.looks:
            lines.append(f"{gain.n} seeds are none of these looks: a verdict after them is not covered.")
    return [x for x in lines if x]


def _again_text(reference: str, found: Difference) -> str:
    return (
        f"{reference} trained a second time with other seeds differs by {points(found)} ({_seeds(found.n)} each): what"
        " no difference looks like here."
    )


class VerdictText(NamedTuple):
    """A verdict in words."""

    numbers: str
    conclusion: str


class Summary(NamedTuple):
    """What a directory says: its verdicts, notes on them, the command to run next, and how long that takes."""

    verdicts: list[VerdictText]
    notes: list[str]
    next: str
    takes: str = ""
    """``about 12 minutes here``; "" where that is not known."""

    @property
    def lines(self) -> list[str]:
        return [
            *(" ".join(x).strip() for x in self.verdicts),
            *self.notes,
            # After a #, so that a shell takes the line as it is.
            *([f"next: {self.next}{f'  # {self.takes}' if self.takes else ''}"] if self.next else []),
        ]


def summary(records: Sequence[Record], directory: Path) -> Summary:
    """What the records of ``directory`` say so far."""
    there = asked(directory, records)
    found = verdicts(records, there)
    few = len(found) <= MOST_VERDICTS
    noted = [line for verdict in found for line in notes(verdict, there) if few or line != parts(verdict)]
    subjects = {short_name(x.question.arm, x.question.reference) for x in found}
    noted += across_lines(records, subjects) if len(found) > 1 else []
    said = [VerdictText(numbers(x), conclusion(x)) for x in found]
    if not few:
        said = [VerdictText("", overall(found))]
    if not found and any(x.grid == NOISE_FLOOR.name for x in records):
        said = _noise(records)
    if not said:
        said = _again(records)
    step = next_step(found, directory, records)
    return Summary(said, list(dict.fromkeys(noted)), step.command, step.takes)


def _again(records: Sequence[Record]) -> list[VerdictText]:
    """What is said where no arm is compared but a baseline's second training."""
    found, of_arm = [], by_arm(records)
    for name in filter(is_again, of_arm):
        reference = reference_of(of_arm[name][0])
        ours, theirs = (by_seed(finished(of_arm.get(x, ()), x), score("AP")) for x in (name, reference))
        difference = paired_difference(ours, theirs)
        if difference is not None:
            found.append(VerdictText(_again_text(reference, difference), ""))
    return found


def _noise(records: Sequence[Record]) -> list[VerdictText]:
    """What is said of one arm alone: how far its seeds differ."""
    # Here, not at the top: they load pandas.
    from analysis.load import Run
    from analysis.noise_floor import noise_floor, sentences

    return [VerdictText(x, "") for x in sentences(noise_floor([Run(record, Path()) for record in records]))]


def overall(found: Sequence[Verdict]) -> str:
    """How many of the arms are worth it, which, and the largest gains."""
    words = {
        "worth it": "worth it here",
        "not worth it": "not worth it",
        "as trained": "not worth it as trained, with a teacher that never led",
        "gain": "gaining, with nothing known of longer training at the same cost",
        "lost": "without a result",
        "unknown": "undecided",
    }
    parts = []
    for answer, text in words.items():
        names = [x.question.arm for x in found if _class_of(x) == answer]
        if names:
            parts.append(f"{len(names)} {'is' if len(names) == 1 else 'are'} {text} ({', '.join(names)})")
    return f"Of {len(found)} arms, {'; '.join(parts)}. {largest(found)}".rstrip()


def _class_of(verdict: Verdict) -> str:
    if verdict.gain is None and verdict.lost:
        return "lost"
    return "as trained" if verdict.as_trained == "not worth it" else verdict.answer


def largest(found: Sequence[Verdict]) -> str:
    """The largest gains over the baseline and over that of equal cost; "" where no comparison can be trusted.

    Their intervals are those of one arm, which do not pay for the choice, and say so.
    """
    fair = [x for x in found if not x.obstacles]
    over = {"over the baseline": [(x.gain, x) for x in fair if x.gain]}
    over["over the baseline at equal cost"] = [(x.margin, x) for x in fair if x.margin]
    parts, most = [], 0
    for reference, gains in over.items():
        if gains:
            gain, of = max(gains, key=lambda x: x[0].mean)
            which = f"largest of {len(gains)} gains" if len(gains) > 1 else "only gain"
            parts.append(f"the {which} {reference} is {points(gain)} ({of.question.arm})")
            most = max(most, len(gains))
    text = ", ".join(parts)
    chosen = "; picking the largest overstates it" if most > 1 else ""
    return f"{text[:1].upper()}{text[1:]}{chosen}." if parts else ""


def _seeds(n: int) -> str:
    return f"{n} seed{'s' * (n != 1)}"


def _cost(verdict: Verdict) -> str:
    if verdict.cost is None:
        return ""
    hours = f" ({hours_text(verdict.extra_hours, on_gpu=verdict.on_gpu)})" if verdict.extra_hours is not None else ""
    return f" for {with_unit(verdict.cost, 'x')} the training cost{hours}"


def hours_text(hours: float, *, on_gpu: bool) -> str:
    """``+0.04 GPU-h``, two digits."""
    hours = round(hours, 6)
    digits = 1 - math.floor(math.log10(abs(hours))) if hours else 0
    # Adding 0.0 turns the -0.0 that rounding may leave into 0.0.
    return f"{hours + 0.0:+.{min(max(digits, 0), 6)}f} {'GPU' if on_gpu else 'CPU'}-h"


def _same_cost(verdict: Verdict) -> str:
    ratio = verdict.equal_cost_ratio
    if ratio is None:
        return "an unknown cost spent"
    # Busier cores make a training no longer, but what the clock said is said.
    measured = verdict.equal_cost_measured
    steps = f" by its steps, measured {with_unit(measured, 'x')} at another load of the cores," if measured else ""
    if abs(ratio - 1) <= SAME_COST:
        return f"the same cost{steps} spent"
    return f"{with_unit(ratio, 'x')} that cost{steps} spent"
