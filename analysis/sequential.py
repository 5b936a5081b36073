"""Intervals that hold although one looks again and again, and stops at the look one likes.

Repeated confidence intervals (Jennison and Turnbull, "Interim analyses: the repeated confidence interval approach",
Journal of the Royal Statistical Society B 51, 1989; their book "Group Sequential Methods", 2000, chapter 9): with the
looks fixed beforehand, every look's interval is a t interval at one nominal level, chosen so that *all* of them hold
the true mean together with 95%. The level is Pocock's (Biometrika 64, 1977): the same significance at every look, which
is how it carries over to t tests. For the few seeds of a sweep it is found from the joint distribution of the t
statistics, which depends on the numbers of seeds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from analysis.stats import CONFIDENCE

DRAWS = 100_000
"""Simulated sweeps that the level is read from: its standard error is about 1% of it."""


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


def planned_looks(first: int, step: int, most: int) -> tuple[int, ...]:
    """``first``, and from there every ``step`` seeds up to ``most``."""
    return tuple(range(first, most + 1, step))
