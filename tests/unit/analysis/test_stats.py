from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from analysis.stats.differences import mean_interval, paired_difference, paired_ratio, t_quantile


def test_interval_by_hand() -> None:
    # Mean 2, s = 1, n = 3, t(2, 0.975) = 4.302653 from a printed table: half width 4.302653 / sqrt(3).
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None
    assert found.mean == 2.0
    assert found.n == 3
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-5)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-5)


def test_the_intervals_are_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    for n in (2, 3, 5, 30):
        a, b = generator.normal(20, 2, n), generator.normal(19, 2, n)
        paired = paired_difference(dict(enumerate(a.tolist())), dict(enumerate(b.tolist())), 0.9)
        single = mean_interval(a.tolist())
        assert paired is not None
        assert single is not None
        expected = ttest_rel(a, b).confidence_interval(0.9)
        assert (paired.low, paired.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
        expected = ttest_1samp(a, 0).confidence_interval(0.95)
        assert (single.low, single.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_the_quantile_by_a_printed_table() -> None:
    for degrees, expected in ((1, 12.706205), (2, 4.302653), (4, 2.776445), (30, 2.042272)):
        assert t_quantile(0.95, degrees) == pytest.approx(expected, abs=1e-6)


def test_another_confidence() -> None:
    # t(1, 0.95) = 6.313752; s = sqrt(2), n = 2: the half width is t itself.
    found = mean_interval([0.0, 2.0], confidence=0.9)
    assert found is not None
    assert found.high == pytest.approx(1 + 6.313752, abs=1e-5)
    assert found.confidence == 0.9


def test_pairs_by_seed_whatever_the_order() -> None:
    reference = {2: 30.0, 0: 10.0, 1: 20.0, 7: 99.0}
    found = paired_difference({0: 11.0, 1: 22.0, 2: 33.0, 5: -50.0}, reference)
    assert found is not None
    assert found.seeds == (0, 1, 2)
    assert found.n == 3
    assert found.mean == pytest.approx(2.0)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-5)


def test_what_a_seed_does_to_both_cancels() -> None:
    found = paired_difference({0: 11.0, 1: 51.1, 2: 90.9}, {0: 10.0, 1: 50.0, 2: 90.0})
    assert found is not None
    assert found.low is not None
    assert found.low > 0.7


def test_sign() -> None:
    found = paired_difference({0: 1.0}, {0: 3.0})
    assert found is not None
    assert found.mean == -2.0


def test_one_pair_has_no_interval() -> None:
    found = paired_difference({0: 3.0, 1: 4.0}, {0: 1.0, 2: 9.0})
    assert found is not None
    assert (found.mean, found.low, found.high, found.n) == (2.0, None, None, 1)


def test_nothing_in_common() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
    assert paired_difference({}, {}) is None
    assert mean_interval([]) is None
    assert paired_ratio({0: 1.0}, {1: 1.0}) is None


def test_equal_differences_give_an_interval_of_no_width() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = paired_difference({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert found is not None
    assert (found.low, found.high) == (1.0, 1.0)


def test_ratio_over_common_seeds() -> None:
    found = paired_ratio({0: 20.0, 1: 40.0, 2: 1000.0}, {0: 10.0, 1: 30.0, 3: 5.0})
    assert found is not None
    assert found.value == pytest.approx((20 / 10 + 40 / 30) / 2)
    assert found.seeds == (0, 1)
    # One training that other work slowed.
    slowed = paired_ratio({0: 20.0, 1: 60.0, 2: 200.0}, {0: 10.0, 1: 30.0, 2: 10.0})
    assert slowed is not None
    assert slowed.value == 2


def test_ratio_to_nothing() -> None:
    assert paired_ratio({0: 1.0}, {0: 0.0}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, value])
    with pytest.raises(ValueError, match="finite"):
        paired_ratio({0: value}, {0: 1.0})


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_refuses_a_confidence_in_percent(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        mean_interval([1.0, 2.0], confidence)
