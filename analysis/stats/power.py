"""How many seeds a comparison needs: the power of the paired t test."""

from __future__ import annotations

import math

from analysis.stats.differences import CONFIDENCE, t_quantile

POWER = 0.8
"""The chance of telling a difference that is there, which seeds are counted for."""

MOST_SEEDS = 1000
"""Where the count ends."""


def power(seeds: int, difference: float, spread: float, confidence: float = CONFIDENCE) -> float:
    """The chance that the two-sided t test over ``seeds`` pairs tells a mean of ``difference`` from zero.

    spread: standard deviation of the pairs' differences, in the same unit. From the noncentral t distribution.
    """
    if seeds < 2:
        return 0.0
    if spread <= 0:
        return 1.0
    # Here, as in analysis/stats/differences.py: a table without two seeds does without.
    from scipy.special import nctdtr

    degrees, centre = seeds - 1, abs(difference) / spread * math.sqrt(seeds)
    edge = t_quantile(confidence, degrees)
    found = 1.0 - float(nctdtr(degrees, centre, edge)) + float(nctdtr(degrees, centre, -edge))
    # For a centre far out the distribution function is not computed any more: all of it lies beyond the edge.
    return found if math.isfinite(found) else 1.0


def seeds_for(difference: float, spread: float, confidence: float = CONFIDENCE, wanted: float = POWER) -> int:
    """The least number of seeds with that power (at most MOST_SEEDS)."""
    low, high = 2, 2
    while high < MOST_SEEDS and power(high, difference, spread, confidence) < wanted:
        low, high = high + 1, min(2 * high, MOST_SEEDS)
    while low < high:
        middle = (low + high) // 2
        if power(middle, difference, spread, confidence) < wanted:
            low = middle + 1
        else:
            high = middle
    return high


def seeds_for_width(half: float, spread: float, confidence: float = CONFIDENCE) -> int:
    """The least number of seeds whose t interval is no wider than ``half`` to either side (at most MOST_SEEDS)."""
    low, high = 2, MOST_SEEDS
    while low < high:
        middle = (low + high) // 2
        if t_quantile(confidence, middle - 1) * spread / math.sqrt(middle) > half:
            low = middle + 1
        else:
            high = middle
    return high
