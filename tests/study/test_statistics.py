"""Statistics of a few seeds: against values worked out by hand, and scipy's own tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clab_d2.study.statistics import (
    estimate,
    holm,
    paired_differences,
    pooled_std,
    smallest_detectable_difference,
)

FIGURES = st.lists(st.floats(0, 100).map(lambda x: round(x, 2)), min_size=2, max_size=12)


def test_an_estimate_worked_out_by_hand() -> None:
    # 2, 4, 9: mean 5, squares 9 + 1 + 16 = 26, variance 13; t(0.975, 2) = 4.30265 by the tables
    found = estimate([2, 4, 9], 0.95)
    error = math.sqrt(13 / 3)
    assert (found.mean, found.count) == (5, 3)
    assert found.standard_error == pytest.approx(error)
    assert found.low == pytest.approx(5 - 4.30265 * error, abs=1e-4)
    assert found.high == pytest.approx(5 + 4.30265 * error, abs=1e-4)


@pytest.mark.parametrize(("values", "mean", "count"), [([], math.nan, 0), ([3.5], 3.5, 1)])
def test_too_few_values_have_no_interval(values: list[float], mean: float, count: int) -> None:
    found = estimate([*values, math.nan], 0.95)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert found.count == count
    assert all(map(math.isnan, (found.standard_error, found.low, found.high)))


def test_equal_values_are_sure() -> None:
    found = estimate([7.0, 7.0, 7.0], 0.95)
    assert (found.low, found.mean, found.high, found.standard_error) == (7, 7, 7, 0)


@given(FIGURES, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_the_interval_excludes_0_where_a_t_test_rejects_it(
    values: list[float], confidence: float
) -> None:
    if np.ptp(values) < 0.1:
        return
    differences = [value - 50 for value in values]
    found = estimate(differences, confidence)
    ours = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    assert (found.low, found.high) == pytest.approx((ours.low, ours.high))
    p = stats.ttest_1samp(differences, 0).pvalue
    assert found.p_value == pytest.approx(p)
    if abs(p - (1 - confidence)) > 1e-6:
        assert found.excludes_zero == (p < 1 - confidence)


@pytest.mark.parametrize(
    ("values", "p_value"), [([3.0], math.nan), ([0.0, 0.0], 1), ([2.0, 2.0], 0)]
)
def test_p_values_at_the_edges(values: list[float], p_value: float) -> None:
    assert estimate(values, 0.95).p_value == pytest.approx(p_value, nan_ok=True)


def test_holm_worked_out_by_hand() -> None:
    # against 0.05 / 4, / 3, / 2, / 1 from the smallest: 0.03 exceeds 0.025, and ends it
    assert holm([0.03, 0.01, 0.04, 0.015], 0.05) == [False, True, False, True]
    assert holm([0.04], 0.05) == [True]
    assert holm([], 0.05) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 0.2))
def test_holm_is_between_bonferroni_and_none(p_values: list[float], level: float) -> None:
    holds = holm(p_values, level)
    for p_value, one in zip(p_values, holds, strict=True):
        assert one or p_value > level / len(p_values)
        assert not one or p_value <= level
    # what holds is the smallest ones
    assert max((p for p, one in zip(p_values, holds, strict=True) if one), default=0) <= min(
        (p for p, one in zip(p_values, holds, strict=True) if not one), default=1
    )


def test_differences_pair_by_seed() -> None:
    values = {1: 80.0, 2: 82.0, 3: math.nan, 5: 90.0}
    baseline = {2: 79.0, 1: 81.0, 3: 70.0, 4: 60.0}
    assert paired_differences(values, baseline) == {1: -1.0, 2: 3.0}


def test_pooled_std_by_hand() -> None:
    # variances 2 (1 degree of freedom) and 13 (2): (2 + 26) / 3
    std, freedom = pooled_std([[1, 3], [2, 4, 9], [5], [6, math.nan]])
    assert std == pytest.approx(math.sqrt(28 / 3))
    assert freedom == 3
    assert math.isnan(pooled_std([[1], []])[0])


@pytest.mark.parametrize("count", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_the_smallest_detectable_difference_has_its_power(count: int, confidence: float) -> None:
    """By drawing studies: the t-test of so many seeds rejects 0 in 80% of them."""
    difference = smallest_detectable_difference(1.5, count, confidence)
    rng = np.random.default_rng(0)
    drawn = rng.normal(difference, 1.5, (40_000, count))
    rejected = stats.ttest_1samp(drawn, 0, axis=1).pvalue < 1 - confidence
    assert rejected.mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize(("effect", "pairs"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_the_textbooks_number_of_pairs_suffices_and_one_less_does_not(
    effect: float, pairs: int
) -> None:
    """Small, medium and large effect (Cohen), two-sided 5%, 80% power."""
    assert smallest_detectable_difference(1.0, pairs, 0.95) <= effect
    assert smallest_detectable_difference(1.0, pairs - 1, 0.95) > effect


def test_more_seeds_show_less_and_no_spread_shows_all() -> None:
    shown = [smallest_detectable_difference(1.0, count, 0.95) for count in range(2, 40)]
    assert shown == sorted(shown, reverse=True)
    assert smallest_detectable_difference(0.0, 5, 0.95) == 0
    assert math.isnan(smallest_detectable_difference(math.nan, 5, 0.95))
