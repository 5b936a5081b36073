"""From how many steps on one arm is ahead of another: where two curves of AP against steps cross."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from analysis.rates import BySeed, Curve, length_curves, on_like_hardware, pairs
from analysis.stats.differences import CONFIDENCE, FEW_SEEDS, MANY_SEEDS, Difference, paired_difference, verdict
from lgd.results.record import Record

RESAMPLES = 2000

TOO_NARROW = ", too narrow for so few"

FAR = 2.5
"""Neighbouring lengths, or costs, that differ by a larger factor are named where a crossing is read between them, and
no AP at equal cost is (analysis/evidence/curves.py). Those of the grid ``schedule-length`` differ by 2."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """Where the mean difference of two arms first changes its sign."""

    arm: str
    baseline: str
    ahead: str
    """The arm that leads before it."""
    at: float | None
    """Steps, or device-hours (``unit``); None where it does not up to ``longest``."""
    low: float | None
    """``low``, ``high``: 95% percentile interval of a bootstrap over the seeds; a resample without a crossing counts as
    one beyond ``longest``, which an infinite end stands for. None with one seed."""
    high: float | None
    places: tuple[float, ...]
    """The lengths, or costs, at which both were compared, rising."""
    first: Difference
    """The arm less its baseline at the first of them, of the seeds that both have at all."""
    last: Difference
    """The same at the last of them, of every seed that both have there."""
    seeds: int
    """Those that both have at all places."""
    unit: str = "steps"

    @property
    def longest(self) -> float:
        return self.places[-1]

    @property
    def line(self) -> str:
        """For a table's notes."""
        seeds = f"{self.seeds} seed{'s' * (self.seeds != 1)}"
        equal_cost = "" if self.unit == "steps" else "At equal cost "
        compared = self._compared()
        if self.at is None:
            details = "; ".join(x for x in (self._interval_without_crossing(), compared) if x)
            if self.last.n != self.seeds:
                seeds += f", {self.last.n} at {self._end}"
            return (
                f"{equal_cost}{self.arm} and {self.baseline}: no crossing up to {self._shown(self.longest)} {self.unit}"
                f"{f' ({details})' if details else ''}; {self._lead()} ({seeds})."
            )
        few = TOO_NARROW if self.seeds < MANY_SEEDS else ""
        behind, doubt = self.arm if self.ahead == self.baseline else self.baseline, self._doubt()
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{self._shown(self.low)}, {self._shown(self.high)}]"
        said = f"the mean of {behind} overtakes that of {self.ahead}" if doubt else f"{behind} overtakes {self.ahead}"
        line = (
            f"{equal_cost}{said} at {self._shown(self.at)} {self.unit}{interval}"
            f"{f', interpolated between {compared}' if compared else ''}{doubt} ({seeds}, bootstrap over them{few})."
        )
        return line[0].upper() + line[1:] if doubt else line

    def _doubt(self) -> str:
        """Why nobody overtakes anybody: one of both is ahead by the mean alone, at the first place or the last, or the
        one that was ahead is so again."""
        if self.seeds == 1:
            return "; one seed tells nothing of noise"
        verdicts = [verdict(x.low, x.high) for x in (self.first, self.last)]
        ends = [end for end, of in zip(("first", "last"), verdicts, strict=True) if of not in ("more", "less")]
        what = "length" if self.unit == "steps" else "of these costs"
        if ends:
            return f"; within noise at the {' and the '.join(ends)} {what}"
        return f"; {self.ahead} is ahead again at the last {what}" if verdicts[0] == verdicts[1] else ""

    def _interval_without_crossing(self) -> str:
        """The interval where the mean does not cross, but resamples do; "" where too few of them do."""
        if self.low is None or self.high is None or not math.isfinite(self.low):
            return ""
        ends = [f"{self._shown(x)} {self.unit}" if math.isfinite(x) else "none" for x in (self.low, self.high)]
        return f"{CONFIDENCE:.0%} bootstrap interval: {' to '.join(ends)}"

    def _lead(self) -> str:
        """Who is ahead at the last place, by the interval of the difference there: the mean alone tells nothing."""
        ahead = {"more": self.arm, "less": self.baseline}.get(verdict(self.last.low, self.last.high))
        return f"{ahead} is ahead at {self._end}" if ahead else f"neither is ahead beyond noise at {self._end}"

    @property
    def _end(self) -> str:
        return "the last length" if self.unit == "steps" else "that cost"

    def _compared(self) -> str:
        """The two places that a crossing is read from, where there are no others or they lie far apart; else ""."""
        at = self.low if self.at is None else self.at
        pair = self.places
        if len(pair) > 2:
            if at is None or not math.isfinite(at):
                return ""
            i = min(max(bisect_left(self.places, at), 1), len(self.places) - 1)
            pair = self.places[i - 1 : i + 1]
            if pair[1] <= FAR * pair[0]:
                return ""
        text = " and ".join(map(self._shown, pair))
        return f"lengths {text}" if self.unit == "steps" else f"costs {text} {self.unit}"

    def _shown(self, at: float) -> str:
        if not math.isfinite(at):
            return f"none up to {self._shown(self.longest)}"
        return f"{at:,.0f}" if self.unit == "steps" else f"{at:.3g}"


def crossings(records: Iterable[Record]) -> list[Crossing]:
    """Crossings of arms with their baselines, where both have two common lengths or more with common seeds."""
    return [found for base, arm in pairs(length_curves(records)) if (found := crossing(base, arm)) is not None]


def cost_crossings(records: Iterable[Record]) -> list[Crossing]:
    """The same over what the trainings cost: at equal device-hours, where the costs of both overlap.

    Nothing below FEW_SEEDS seeds on like hardware: nobody can be called ahead by them.
    """
    found = [cost_crossing(base, arm) for base, arm in pairs(length_curves(records))]
    return [x for x in found if x is not None and x.seeds >= FEW_SEEDS]


def crossing(base: Curve, arm: Curve) -> Crossing | None:
    """The crossing of two curves over the steps; None without two common lengths that have common seeds."""
    lengths = sorted(base.points.keys() & arm.points.keys())
    seeds = _common_seeds([curve.points[x] for x in lengths for curve in (base, arm)])
    if len(lengths) < 2 or not seeds:
        return None
    differences = np.array([[arm.points[x][seed] - base.points[x][seed] for x in lengths] for seed in seeds])
    last = paired_difference(arm.points[lengths[-1]], base.points[lengths[-1]])
    return _crossing(base, arm, differences, np.array(lengths, dtype=float), last)


def cost_crossing(base: Curve, arm: Curve) -> Crossing | None:
    """The crossing of two curves over device-hours; None without two places in common, or where a cost is not known.

    AP between two lengths is taken to be linear in the logarithm of the hours.
    """
    base, arm = on_like_hardware(base, arm)
    costs = [{x: fmean(curve.costs[x].values()) for x in curve.points if curve.costs.get(x)} for curve in (base, arm)]
    if any(len(of) < 2 or of.keys() != curve.points.keys() for of, curve in zip(costs, (base, arm), strict=True)):
        return None
    seeds = _common_seeds([of_value for curve in (base, arm) for of_value in curve.points.values()])
    low, high = max(min(of.values()) for of in costs), min(max(of.values()) for of in costs)
    at = np.array(sorted({x for of in costs for x in of.values() if low <= x <= high}))
    if len(at) < 2 or not seeds:
        return None

    def read(curve: Curve, of: Mapping[float, float], seed: int) -> Floats:
        hours, aps = zip(*sorted((of[x], curve.points[x][seed]) for x in curve.points), strict=True)
        return np.interp(np.log(at), np.log(hours), aps)

    differences = np.array([read(arm, costs[1], seed) - read(base, costs[0], seed) for seed in seeds])
    last = paired_difference(dict(enumerate(differences[:, -1].tolist())), dict.fromkeys(range(len(seeds)), 0.0))
    return _crossing(base, arm, differences, at, last, "GPU-h" if arm.on_gpu else "CPU-h")


def _common_seeds(points: Sequence[BySeed]) -> list[int]:
    return sorted(set.intersection(*(set(x) for x in points))) if points else []


def _crossing(
    base: Curve, arm: Curve, differences: Floats, at: Floats, last: Difference | None, unit: str = "steps"
) -> Crossing:
    """The crossing of differences (S, L), arm less baseline, by seed and place ``at`` (L).

    Between two places the difference is taken to be linear in their logarithm. Seeds are drawn anew with replacement,
    the same for all places.
    """
    first = paired_difference(dict(enumerate(differences[:, 0].tolist())), dict.fromkeys(range(len(differences)), 0.0))
    assert first is not None, "there are common seeds"
    assert last is not None, "there are common seeds"
    mean = differences.mean(axis=0)
    found = float(first_change(mean[None], np.log(at))[0])
    low = high = None
    if len(differences) > 1:
        drawn = np.random.default_rng(0).integers(len(differences), size=(RESAMPLES, len(differences)))
        resampled, tail = first_change(differences[drawn].mean(axis=1), np.log(at)), (1 - CONFIDENCE) / 2
        # Not interpolated: between a number and infinity lies nothing.
        low, high = (float(x) for x in np.quantile(resampled, [tail, 1 - tail], method="inverted_cdf"))
    # Where both are equal at first, the one that then leads.
    leads = next((x for x in mean.tolist() if x), 0.0)
    return Crossing(
        arm.name, base.name, arm.name if leads > 0 else base.name, found if math.isfinite(found) else None, low, high,
        tuple(at.tolist()), first, last, len(differences), unit,
    )  # fmt: skip


def first_change(differences: Floats, at: Floats) -> Floats:
    """Steps where each row of ``differences`` (B, L), at their logarithms ``at`` (L), first changes sign, or inf.

    A difference of zero has the sign before it: where the next one has the other sign, the change is at the zero.
    """
    before, after = differences[:, :-1], differences[:, 1:]
    signs = np.sign(differences)
    for i in range(1, signs.shape[1]):
        signs[:, i] = np.where(signs[:, i] == 0, signs[:, i - 1], signs[:, i])
    changes = signs[:, :-1] * signs[:, 1:] < 0
    part = np.divide(before, before - after, out=np.zeros_like(before), where=changes)
    places = np.exp(at[:-1] + part * (at[1:] - at[:-1]))
    first = np.argmax(changes, axis=1)
    return np.where(changes.any(axis=1), places[np.arange(len(places)), first], np.inf)
