"""From how many steps on one arm is ahead of another: where two curves of AP against steps cross."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.rates import Curve, length_curves, pairs
from analysis.stats import CONFIDENCE
from lgd.results.record import Record

RESAMPLES = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """Where the mean difference of two arms first changes its sign.

    steps: None where it does not up to ``longest``. low, high: 95% percentile interval of a bootstrap over the seeds; a
    resample without a crossing counts as one beyond ``longest``, which an infinite end stands for. None with one seed.
    """

    arm: str
    baseline: str
    ahead: str
    """Who leads before it."""
    steps: float | None
    low: float | None
    high: float | None
    longest: float
    seeds: int

    @property
    def line(self) -> str:
        """For a table's notes."""
        behind = self.arm if self.ahead == self.baseline else self.baseline
        seeds = f"{self.seeds} seed{'s' * (self.seeds != 1)}"
        if self.steps is None:
            return (
                f"{self.arm} and {self.baseline}: no crossing up to {self.longest:,.0f} steps; {self.ahead} is ahead"
                f" ({seeds})."
            )
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" [{_shown(self.low, self.longest)}, {_shown(self.high, self.longest)}]"
        return f"{behind} overtakes {self.ahead} at {self.steps:,.0f} steps{interval} ({seeds}, bootstrap over them)."


def _shown(steps: float, longest: float) -> str:
    return f"{steps:,.0f}" if math.isfinite(steps) else f"none up to {longest:,.0f}"


def crossings(records: Iterable[Record]) -> list[Crossing]:
    """Of every arm with its baseline, where both were trained at two common lengths or more with common seeds."""
    return [found for base, arm in pairs(length_curves(records)) if (found := crossing(base, arm)) is not None]


def crossing(base: Curve, arm: Curve, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE) -> Crossing | None:
    """Of two curves; None without two common lengths that have common seeds.

    Between two lengths the difference is taken to be linear in the logarithm of the steps. Seeds are drawn anew with
    replacement, the same for all lengths.
    """
    lengths = sorted(base.points.keys() & arm.points.keys())
    seeds = sorted(set.intersection(*({*base.points[x]} & {*arm.points[x]} for x in lengths))) if lengths else []
    if len(lengths) < 2 or not seeds:
        return None
    differences = np.array([[arm.points[x][seed] - base.points[x][seed] for x in lengths] for seed in seeds])
    at = np.log(np.array(lengths, dtype=float))
    mean = differences.mean(axis=0)
    steps = float(first_change(mean[None], at)[0])
    low = high = None
    if len(seeds) > 1:
        drawn = np.random.default_rng(0).integers(len(seeds), size=(resamples, len(seeds)))
        found = first_change(differences[drawn].mean(axis=1), at)
        tail = (1 - confidence) / 2
        # Not interpolated: between a number and infinity lies nothing.
        low, high = (float(x) for x in np.quantile(found, [tail, 1 - tail], method="inverted_cdf"))
    names = (arm.name, base.name)
    return Crossing(
        *names, names[0] if mean[0] > 0 else names[1], steps if math.isfinite(steps) else None, low, high,
        float(lengths[-1]), len(seeds),
    )  # fmt: skip


def first_change(differences: Floats, at: Floats) -> Floats:
    """Steps where each row of ``differences`` (B, L), at their logarithms ``at`` (L), first changes sign, or inf."""
    before, after = differences[:, :-1], differences[:, 1:]
    changes = before * after < 0
    part = np.divide(before, before - after, out=np.zeros_like(before), where=changes)
    places = np.exp(at[:-1] + part * (at[1:] - at[:-1]))
    first = np.argmax(changes, axis=1)
    return np.where(changes.any(axis=1), places[np.arange(len(places)), first], np.inf)
