"""Means, paired differences and ratios over seeds, with Student t intervals.

With the three to five seeds that a detector's ablation can afford, a bootstrap over seeds overstates what is known;
the t interval pays for the few seeds with its width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

CONFIDENCE = 0.95
"""Confidence level of every interval that is shown."""

FEW_SEEDS = 3
"""The least number of seeds that a spread is read from, and that a verdict rests on."""

MANY_SEEDS = 10
"""A bootstrap over fewer seeds than these covers the truth less often than it says."""


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
    """A mean difference, arm minus reference."""

    seeds: tuple[int, ...]
    """Those that both have."""
    spread: float
    """Standard deviation of the seeds' differences, 0 with one seed."""


@dataclass(frozen=True)
class Ratio:
    """Arm over reference, the median over ``seeds``, those that both have."""

    value: float
    seeds: tuple[int, ...]


def mean_interval(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate | None:
    """Mean and two-sided t interval: that of ``scipy.stats.ttest_1samp(values, 0).confidence_interval(confidence)``.

    Assumes independent values from one roughly normal distribution. One value: no interval. No value: None. Raises
    ValueError for values that are not finite and for a confidence outside (0, 1).
    """
    values = list(values)
    _check(values, confidence)
    if not values:
        return None
    low, high = _t_interval(values, [0.0] * len(values), confidence)
    return Estimate(fmean(values), low, high, len(values), confidence)


def paired_difference(
    arm: Mapping[int, float], reference: Mapping[int, float], confidence: float = CONFIDENCE
) -> Difference | None:
    """Mean of arm_s - reference_s over the common seeds s, with the paired t interval (``scipy.stats.ttest_rel``'s).

    Assumes pairs independent of each other whose differences are roughly normal. What a seed does to both arms alike
    (initial weights, order of the images) cancels. The interval is for one comparison; it is not corrected for the
    number of arms. One common seed: no interval. None in common: None.
    """
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    mine, theirs = [arm[seed] for seed in seeds], [reference[seed] for seed in seeds]
    _check([*mine, *theirs], confidence)
    if not seeds:
        return None
    low, high = _t_interval(mine, theirs, confidence)
    differences = [a - b for a, b in zip(mine, theirs, strict=True)]
    spread = stdev(differences) if len(seeds) > 1 else 0.0
    return Difference(fmean(differences), low, high, len(seeds), confidence, seeds, spread)


def verdict(low: float | None, high: float | None) -> str:
    """``more`` or ``less`` where an interval lies on one side of zero, else ``noise``; "" without an interval."""
    if low is None or high is None:
        return ""
    return "more" if low > 0 else "less" if high < 0 else "noise"


def _t_interval(a: Sequence[float], b: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    """t interval of the mean of a - b; (None, None) for one pair."""
    if len(a) < 2:
        return None, None
    # Here, not at the top: it takes a second to load, and what has one seed does without.
    from scipy.stats import ttest_rel

    with warnings.catch_warnings():
        # That pairs differ by nearly the same: the interval is then as narrow as they say.
        warnings.simplefilter("ignore", RuntimeWarning)
        found = ttest_rel(a, b).confidence_interval(confidence)
    return float(found.low), float(found.high)


def t_quantile(confidence: float, degrees: int) -> float:
    """Two-sided quantile of Student's t: |t| is at most this with the given confidence."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + confidence) / 2))


def paired_ratio(arm: Mapping[int, float], reference: Mapping[int, float]) -> Ratio | None:
    """Median over the common seeds of the arm over the reference: one training that other work slowed moves it little.

    None without a common seed, or where a reference is not above zero. Raises ValueError for values that are not
    finite.
    """
    seeds = tuple(sorted(arm.keys() & reference.keys()))
    above, below = [arm[seed] for seed in seeds], [reference[seed] for seed in seeds]
    _check([*above, *below])
    if not seeds or min(below) <= 0:
        return None
    return Ratio(median(x / y for x, y in zip(above, below, strict=True)), seeds)


def _check(values: Sequence[float], confidence: float = 0.5) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    if not all(map(math.isfinite, values)):
        raise ValueError(f"not every value is finite: {values}")
