"""What an arm's gain is made of: its second detection loss, and imitation; beside its teacher's lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.grid_runs import reference_of
from analysis.load import by_arm, by_seed, finished, score, teacher_ap
from analysis.render import TextTable, difference_text, number
from analysis.stats.differences import CONFIDENCE, Difference, paired_difference
from analysis.teachers import NEVER, arms_never_ahead, teacher_notes
from analysis.templating import render_sentence
from analysis.verdicts.questions import all_without_imitation
from lgd.results.record import Record

FEW_ARMS = 3
"""Arms whose gains are all told in sentences, at most."""


@dataclass(frozen=True)
class SplitGain:
    """An arm's gain in AP over its reference, in two parts: all three of the seeds that the three arms have."""

    arm: str
    reference: str
    gain: Difference | None
    second_loss: Difference | None
    """The same arm with nothing imitated over the reference."""
    imitation: Difference | None
    """The arm over that."""
    teacher: float | None
    lead: Difference | None
    """Its teacher's AP over its own."""


def split_gains(records: Sequence[Record]) -> list[SplitGain]:
    """One for each arm that was also trained without imitation, in the order of the records."""
    found, records_of = [], by_arm(records)
    own = {arm: by_seed(finished(of, arm), score("AP")) for arm, of in records_of.items()}
    for arm, without in all_without_imitation(records).items():
        of = records_of[arm]
        reference = next((x for x in map(reference_of, of) if x in own and x != arm), "")
        teachers = by_seed(finished(of, arm), teacher_ap)
        # Of unlike seeds the parts would not add up to the gain.
        common = set(own[arm]) & set(own[without]) & set(own.get(reference, own[arm]))
        with_it, alone, base = (
            {seed: own[name][seed] for seed in common} if name in own else {} for name in (arm, without, reference)
        )
        found.append(
            SplitGain(
                arm,
                reference,
                paired_difference(with_it, base),
                paired_difference(alone, base),
                paired_difference(with_it, alone),
                fmean(teachers.values()) if teachers else None,
                paired_difference(teachers, own[arm]),
            )
        )
    return found


def split_table(records: Sequence[Record]) -> TextTable | None:
    """:func:`split_gains` for people; None where no arm was trained without imitation."""
    found, never = split_gains(records), set(arms_never_ahead(records))
    if not found:
        return None
    rows = [
        [
            x.arm,
            str(x.gain.n if x.gain else 0),
            number(x.teacher) + (f" {NEVER}" if x.arm in never else ""),
            *(difference_text(part) for part in (x.lead, x.gain, x.second_loss, x.imitation)),
        ]
        for x in found
    ]
    notes = [
        f"Points of AP with {CONFIDENCE:.0%} t intervals, paired by seed. lead: the teacher's AP over its student's in"
        " the end. second loss: the same arm with nothing imitated, over the baseline. imitation: the arm over that."
        " Both together are the gain.",
        *teacher_notes(records, [x.arm for x in found]),
    ]
    header = ["arm", "seeds", "teacher's AP", "lead", "gain", "second loss", "imitation"]
    return TextTable("What each gain is made of", header, rows, notes, minor=("seeds", "teacher's AP", "lead"))


def imitation_sentences(records: Sequence[Record]) -> list[str]:
    """In how many arms the teacher led and imitation gained beyond noise, and in which; of few arms each one's gain."""
    # One seed has no noise to be beyond.
    found = [x for x in split_gains(records) if x.imitation is not None and x.imitation.n > 1 and x.lead is not None]
    if not found:
        return []
    led = [x for x in found if _above(x.lead)]
    gained = [x for x in found if _above(x.imitation)]
    lost = [x for x in found if x.imitation and x.imitation.high is not None and x.imitation.high < 0]
    counts = render_sentence(
        "teachers_and_imitation",
        of=len(found),
        led=len(led),
        gained=[(x.arm, x.imitation) for x in gained],
        gained_and_led=len([x for x in gained if x in led]),
        lost=[(x.arm, x.imitation) for x in lost],
    )
    return [counts, *(render_sentence("split_gain", x=x) for x in found if len(found) <= FEW_ARMS)]


def _above(found: Difference | None) -> bool:
    return found is not None and found.low is not None and found.low > 0
