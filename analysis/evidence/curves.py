"""Studies of lengths on the evidence page: gains at equal steps and at equal cost, and where arms cross.

An arm *without imitation* is no line of its own there: it tells what of another arm's gain imitation is.
"""

from __future__ import annotations

import bisect
import math

from analysis.evidence.studies import AP, Study
from analysis.rates import Curve, equal_cost_steps, length_curves, pairs
from analysis.render import TextTable, difference_text, number
from analysis.stats.differences import Difference, paired_difference
from analysis.table_builders.crossing import FAR, crossings
from analysis.templating import render_sentence
from analysis.verdicts.questions import all_without_imitation

BEYOND = 1.05
"""How far beyond its longest training a baseline's AP is read, as a factor of the steps: on the same line."""


def at_equal_cost(base: Curve, arm: Curve) -> dict[float, Difference]:
    """The arm over a baseline that cost as many device-hours, by the arm's steps.

    What the arm costs more is measured where both were trained for the same steps on like hardware
    (:func:`analysis.rates.equal_cost_steps`); the baseline's AP between two of its lengths is taken to be linear in the
    logarithm of the steps, seed by seed, and as far as BEYOND the last. Lengths whose cost lies elsewhere are left out,
    and those whose cost lies between two lengths that differ by more than FAR: AP rises along a curve that lies above
    that line, which would favour the arm.
    """
    found = {}
    for steps, equal in equal_cost_steps(base, arm).items():
        there = _baseline_at(base, equal)
        if difference := paired_difference(arm.points[steps], there):
            found[steps] = difference
    return found


def _baseline_at(base: Curve, steps: float) -> dict[int, float]:
    """AP by seed after ``steps``, on the line through the two lengths around them.

    None far outside of all lengths, or between two that lie far apart.
    """
    lengths = sorted(base.points)
    if steps < lengths[0] or steps > BEYOND * lengths[-1]:
        return {}
    if steps in base.points or len(lengths) == 1:
        return dict(base.points.get(steps, base.points[lengths[0]]))
    after = min(max(1, bisect.bisect_left(lengths, steps)), len(lengths) - 1)
    ends = lengths[after - 1], lengths[after]
    if ends[1] > FAR * ends[0]:
        return {}
    part = math.log(steps / ends[0]) / math.log(ends[1] / ends[0])
    one, other = (base.points[x] for x in ends)
    return {s: one[s] + part * (other[s] - one[s]) for s in one.keys() & other.keys()}


def compared(study: Study) -> list[tuple[Curve, Curve]]:
    """Each arm's curve with its baseline's, (baseline, arm), without the arms without imitation."""
    alone = set(all_without_imitation(study.records).values())
    return [x for x in pairs(length_curves(study.records)) if not alone.issuperset(x[1].arms.values())]


def imitation(study: Study, arm: Curve) -> dict[float, Difference]:
    """The arm over itself without imitation, by steps; of the lengths at which that was trained."""
    found, counterparts = {}, all_without_imitation(study.records)
    for steps, name in arm.arms.items():
        without = counterparts.get(name)
        difference = paired_difference(arm.points[steps], study.values(without, AP)) if without else None
        if difference is not None:
            found[steps] = difference
    return dict(sorted(found.items()))


def length_sentences(study: Study) -> list[str]:
    """Where arms cross their baselines, at equal steps."""
    shown = {(base.name, arm.name) for base, arm in compared(study)}
    return [x.line for x in crossings(study.records) if (x.baseline, x.arm) in shown]


def equal_cost_sentences(study: Study) -> list[str]:
    """Each arm over a baseline that cost as much, at the grid's own length and at the longest that has one."""
    lines = []
    for base, arm in compared(study):
        found = at_equal_cost(base, arm)
        own = [x for x in found if arm.arms[x] == arm.name]
        gains = [(x, found[x]) for x in dict.fromkeys([*own, *list(found)[-1:]])]
        if gains:
            lines.append(render_sentence("arm_over_longer_baseline", arm=arm.name, baseline=base.name, gains=gains))
    return lines


def more_training(study: Study) -> list[str]:
    """What longer training alone gains: each baseline over itself at the grid's own length."""
    lines = []
    for base in (x for x in length_curves(study.records) if x.is_baseline):
        own = next((x for x, name in base.arms.items() if name == base.name), None)
        longer = [x for x in base.points if own is not None and x > own]
        gains = [
            (x / own, found)
            for x in longer
            if own is not None and (found := paired_difference(base.points[x], base.points[own])) is not None
        ]
        if gains:
            lines.append(render_sentence("more_training_alone", baseline=base.name, gains=gains))
    return lines


def lengths_table(study: Study) -> TextTable | None:
    """A row a length: the baseline's AP, and each arm over it at equal steps and at equal cost; None without arms."""
    found = compared(study)
    if not found:
        return None
    base = found[0][0]
    header, rows = ["steps", "baseline's AP"], {x: [f"{x:,.0f}", number(base.mean(x))] for x in base.points}
    for arm in (arm for other, arm in found if other is base):
        header += [f"{arm.name}, equal steps", f"{arm.name}, equal cost"]
        at_cost = at_equal_cost(base, arm)
        for steps, row in rows.items():
            row += [
                difference_text(paired_difference(arm.points.get(steps, {}), base.points[steps])),
                difference_text(at_cost.get(steps)),
            ]
        if of_imitation := imitation(study, arm):
            header.append("of it imitation")
            for steps, row in rows.items():
                row.append(difference_text(of_imitation.get(steps)))
    note = (
        "equal cost: over a baseline of as many more steps as the arm costs more at the same steps; its AP between two"
        f" lengths, at most {FAR:g} times apart, is taken to be linear in their logarithm."
    )
    return TextTable("At equal steps and at equal cost", header, list(rows.values()), [note])
