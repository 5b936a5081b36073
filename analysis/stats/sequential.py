"""Intervals that hold although one looks again and again, and stops at the look one likes; and which looks to take.

Repeated confidence intervals (Jennison and Turnbull, "Interim analyses: the repeated confidence interval approach",
Journal of the Royal Statistical Society B 51, 1989; their book "Group Sequential Methods", 2000, chapter 9): with the
looks fixed beforehand, every look's interval is a t interval at one nominal level, chosen so that *all* of them hold
the true mean together with 95%. The level is Pocock's (Biometrika 64, 1977): the same significance at every look, which
is how it carries over to t tests. For the few seeds of a sweep it is found from the joint distribution of the t
statistics, which depends on the numbers of seeds alone.

All planned looks are paid for. Those that are left out, for whatever reason, leave fewer occasions to err: the others'
intervals still hold together with 95% or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from analysis.stats.differences import CONFIDENCE, FEW_SEEDS, t_quantile

FIRST_LOOK, STEP, LAST_LOOK = FEW_SEEDS, 2, 15
"""Seeds before the first look, between planned looks, and at the last, unless the command says otherwise."""

DRAWS = 100_000
"""Simulated sweeps that the level is read from: its standard error is about 1% of it, 9% where it is that of the best
of 38 arms."""

PREDICTED = 20_000
"""Draws that a predictive power is read from: the standard error of one of 5% is 0.15%."""

TINY = 1e-9
"""Points of AP: a standard deviation is no smaller, so that what is divided by it is a number."""

Floats = NDArray[np.float64]


def confidence_at_each_look(looks: Sequence[int], confidence: float = CONFIDENCE) -> float:
    """The confidence of each look's t interval with which all of them hold together with ``confidence``.

    looks: numbers of seeds, rising, two or more each; all that are planned, those to come included. One look, or none:
    ``confidence`` itself.
    """
    counted = tuple(n for n in looks if n > 1)
    return confidence if len(counted) < 2 else _level(counted, confidence)


@cache
def _level(looks: tuple[int, ...], confidence: float) -> float:
    from scipy.special import stdtr

    values = np.random.default_rng(0).standard_normal((DRAWS, looks[-1]))
    total, squares = np.cumsum(values, axis=1), np.cumsum(values**2, axis=1)
    least = np.ones(DRAWS)
    for n in looks:
        mean = total[:, n - 1] / n
        variance = (squares[:, n - 1] - n * mean**2) / (n - 1)
        t = np.abs(mean) / np.sqrt(variance / n)
        least = np.minimum(least, 2 * stdtr(n - 1, -t))
    return float(1 - np.quantile(least, 1 - confidence))


def predictive_power(
    mean: ArrayLike, spread: ArrayLike, seeds: int, more: int, confidence: float, min_gain: float
) -> tuple[Floats, Floats]:
    """How likely the t interval after ``more`` seeds will lie above zero, and how likely below ``min_gain``.

    mean, spread: of the ``seeds`` differences so far, two or more, and their standard deviation; numbers or arrays (B).
    What is to come is drawn from its distribution given these, under the prior that is flat in the mean and in the
    logarithm of the standard deviation (Spiegelhalter, Freedman and Blackburn, "Monitoring clinical trials: conditional
    or predictive power?", Controlled Clinical Trials 7, 1986).
    """
    spread_B = np.maximum(np.asarray(spread, dtype=np.float64), TINY)
    above, below = _predicted(seeds, more, confidence)
    over_zero, under_min_gain = np.asarray(mean) / spread_B, (min_gain - np.asarray(mean)) / spread_B
    return np.searchsorted(above, over_zero) / PREDICTED, np.searchsorted(below, under_min_gain) / PREDICTED


@cache
def _predicted(seeds: int, more: int, confidence: float) -> tuple[Floats, Floats]:
    """Drawn for a mean of 0 and a standard deviation of 1, sorted: how far an interval's ends may come to lie.

    The negative lower end, which the mean has to exceed for the interval to lie above zero; and the upper one.
    """
    generator, total = np.random.default_rng(0), seeds + more
    true_spread = np.sqrt((seeds - 1) / generator.chisquare(seeds - 1, PREDICTED))
    truth = true_spread / np.sqrt(seeds) * generator.standard_normal(PREDICTED)
    added = truth + true_spread / np.sqrt(more) * generator.standard_normal(PREDICTED)
    # Chi-squared with more - 1 degrees of freedom, which may be none.
    added_squares = true_spread**2 * 2 * generator.standard_gamma((more - 1) / 2, PREDICTED)
    squares = (seeds - 1) + added_squares + seeds * more / total * added**2
    half = t_quantile(confidence, total - 1) * np.sqrt(squares / (total - 1) / total)
    centre = more * added / total
    return np.sort(half - centre), np.sort(half + centre)


def planned_looks(first: int, step: int, most: int) -> tuple[int, ...]:
    """``first``, and from there every ``step`` seeds up to ``most``."""
    return tuple(range(first, most + 1, step))
