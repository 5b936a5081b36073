"""Statistics on simulated sweeps whose truth is known: 10,000 of each, at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import nct
from scipy.stats import t as student

from analysis.stats.differences import paired_difference, t_quantile
from analysis.stats.power import power, seeds_for, seeds_for_width
from analysis.stats.sequential import confidence_at_each_look, planned_looks

SWEEPS = 10_000

SPREAD = 1.3
"""Standard deviation of a seed's difference, points of AP."""

MARGIN = 3 * np.sqrt(0.05 * 0.95 / SWEEPS)
"""Three standard errors of a 5% rate over so many sweeps."""

Floats = NDArray[np.float64]


def _sweeps(truth: float, seeds: int, seed: int = 0) -> Floats:
    """Differences (SWEEPS, seeds) of arm and reference, paired by seed."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(30, 2, (SWEEPS, seeds))
    noise = generator.normal(0, SPREAD / np.sqrt(2), (2, SWEEPS, seeds))
    return (shared + truth + noise[0]) - (shared + noise[1])


def _intervals(differences: Floats, confidence: float) -> tuple[Floats, Floats]:
    """The t interval of each row, as analysis.stats.differences computes it for one."""
    seeds = differences.shape[1]
    half = t_quantile(confidence, seeds - 1) * differences.std(axis=1, ddof=1) / np.sqrt(seeds)
    return differences.mean(axis=1) - half, differences.mean(axis=1) + half


def _looked_at(differences: Floats, looks: Sequence[int], confidence: float) -> list[tuple[Floats, Floats]]:
    return [_intervals(differences[:, :n], confidence) for n in looks]


def test_the_rows_are_what_the_suite_computes() -> None:
    rows = _sweeps(0.4, 5)
    low, high = _intervals(rows, 0.95)
    for i in range(20):
        found = paired_difference(dict(enumerate(rows[i].tolist())), dict.fromkeys(range(5), 0.0))
        assert found is not None
        assert (found.low, found.high) == pytest.approx((low[i], high[i]))
        assert found.spread == pytest.approx(rows[i].std(ddof=1))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds: int) -> None:
    low, high = _intervals(_sweeps(0.7, seeds), 0.95)
    assert np.mean((low > 0.7) | (high < 0.7)) == pytest.approx(0.05, abs=MARGIN)


@pytest.mark.parametrize(("seeds", "difference"), [(3, 1.5), (5, 1.5), (8, 0.5), (20, 0.5)])
def test_power_is_how_often_a_difference_is_told(seeds: int, difference: float) -> None:
    low, _ = _intervals(_sweeps(difference, seeds), 0.95)
    assert power(seeds, difference, SPREAD) == pytest.approx(np.mean(low > 0), abs=0.02)
    centre, edge = difference / SPREAD * np.sqrt(seeds), student.ppf(0.975, seeds - 1)
    exact = nct.sf(edge, seeds - 1, centre) + nct.cdf(-edge, seeds - 1, centre)
    assert power(seeds, difference, SPREAD) == pytest.approx(exact, rel=1e-6)


def test_the_seeds_asked_for_are_enough_and_no_more() -> None:
    for difference in (0.3, 0.5, 1.0, 3.0):
        seeds = seeds_for(difference, SPREAD)
        assert power(seeds, difference, SPREAD) >= 0.8 > power(seeds - 1, difference, SPREAD)
        low, _ = _intervals(_sweeps(difference, seeds), 0.95)
        assert np.mean(low > 0) > 0.8 - 0.02
        width = seeds_for_width(difference, SPREAD)
        assert t_quantile(0.95, width - 1) * SPREAD / np.sqrt(width) <= difference
    assert (power(1, 1.0, 1.0), power(5, 1.0, 0.0)) == (0.0, 1.0)
    assert power(1000, 5.0, 0.1) == pytest.approx(1.0)


LOOKS = planned_looks(3, 2, 15)


def test_looking_again_and_again_errs_no_more_than_once_in_twenty() -> None:
    """Where there is no difference, and where there is one: all looks of a sweep hold the truth together in 95%."""
    confidence = confidence_at_each_look(LOOKS)
    for truth in (0.0, 0.8):
        rows = _sweeps(truth, LOOKS[-1], seed=1)
        wrong = np.zeros(SWEEPS, dtype=bool)
        for low, high in _looked_at(rows, LOOKS, confidence):
            wrong |= (low > truth) | (high < truth)
        assert wrong.mean() == pytest.approx(0.05, abs=MARGIN)
    # Without the correction, a sweep that stops when it likes what it sees errs far more often.
    naive = np.zeros(SWEEPS, dtype=bool)
    for low, high in _looked_at(_sweeps(0.0, LOOKS[-1]), LOOKS, 0.95):
        naive |= (low > 0) | (high < 0)
    assert naive.mean() > 0.12


def test_one_difference_is_seldom_wrong() -> None:
    """It ends above zero or below what matters: each is wrong in at most one of forty, wherever it is wrong.

    A sweep's rule has two differences: test_until_decided.py.
    """
    confidence, min_gain = confidence_at_each_look(LOOKS), 1.0
    for truth, wrong in ((0.0, 1), (min_gain, -1)):
        answer = np.zeros(SWEEPS)
        for low, high in _looked_at(_sweeps(truth, LOOKS[-1], seed=2), LOOKS, confidence):
            answer = np.where(answer != 0, answer, np.where(low > 0, 1, np.where(high < min_gain, -1, 0)))
        assert np.mean(answer == wrong) <= 0.025 + MARGIN
        # And it does end: often before the last look.
        assert np.mean(answer == -wrong) > 0.4


def test_a_sweep_that_stops_early_needs_fewer_seeds() -> None:
    confidence, found = confidence_at_each_look(LOOKS), np.full(SWEEPS, LOOKS[-1])
    told = np.zeros(SWEEPS, dtype=bool)
    for n, (low, _) in zip(LOOKS, _looked_at(_sweeps(2.0, LOOKS[-1]), LOOKS, confidence), strict=True):
        found[~told & (low > 0)] = n
        told |= low > 0
    assert told.mean() > 0.97
    assert found.mean() < 9


def test_one_look_pays_nothing() -> None:
    assert confidence_at_each_look(()) == confidence_at_each_look((5,)) == 0.95
    assert planned_looks(3, 2, 8) == (3, 5, 7)
    # A single seed has no interval, so there is nothing to look at.
    assert confidence_at_each_look((1, 5)) == 0.95
    assert 0.95 < confidence_at_each_look((5, 10)) < confidence_at_each_look((3, 5, 7, 9)) < 1
