"""Means, paired differences and ratios over seeds, with Student t intervals.

With the three to five seeds that a detector's ablation can afford, a bootstrap over seeds overstates what is known;
the t interval pays for the few seeds with its width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values and its interval (both ends None when ``n`` is 1), in the values' unit."""

    mean: float
    low: float | None
    high: float | None
    n: int
    confidence: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean difference, arm minus reference; ``seeds`` are those that both have."""

    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Ratio:
    """A ratio of means, arm over reference; ``seeds`` are those that both have."""

    value: float
    seeds: tuple[int, ...]


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> Estimate | None:
    """Mean and two-sided t interval: mean ± t(n-1, (1+confidence)/2) · s / √n, s the sample standard deviation.

    Assumes independent values from one roughly normal distribution. One value: no interval. No value: None. Raises
    ValueError for values that are not finite and for a confidence outside (0, 1).
    """
    values = list(values)
    _check(values, confidence)
    if not values:
        return None
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1, confidence)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, confidence)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Mean of d_s = arm_s - reference_s over the common seeds s, with the t interval of the d_s.

    :func:`mean_interval` of the d_s, so: pairs independent of each other, their differences roughly normal. What a
    seed does to both arms alike (initial weights, order of the images) cancels. The interval is for one comparison;
    it is not corrected for the number of arms. One common seed: no interval. None in common: None.
    """
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    found = mean_interval([arm[seed] - reference[seed] for seed in seeds], confidence)
    return Difference(found.mean, found.low, found.high, found.n, confidence, seeds) if found else None


def paired_ratio(arm: Mapping[int, float], reference: Mapping[int, float]) -> Ratio | None:
    """Mean of the arm over mean of the reference, both over the common seeds.

    None without a common seed, or where the reference's mean is not above zero. Raises ValueError for values that
    are not finite.
    """
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    above, below = [arm[seed] for seed in seeds], [reference[seed] for seed in seeds]
    _check([*above, *below])
    if not seeds or fmean(below) <= 0:
        return None
    return Ratio(fmean(above) / fmean(below), seeds)


def _check(values: Sequence[float], confidence: float = 0.5) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"not every value is finite: {values}")
