"""Intervals and tests against scipy, closed forms and published examples."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from scipy.stats import binomtest

from fitcompress.evaluation.significance import (
    holm,
    mean_interval,
    paired_t_test,
    paired_test,
    share,
    wilson_interval,
)
from fitcompress.records.measurements import MeanInterval, Share


@pytest.mark.parametrize(
    ("num_correct", "n", "confidence"),
    [(0, 10, 0.95), (10, 10, 0.95), (7, 9, 0.95), (1762, 2000, 0.99), (1, 1, 0.9)],
)
def test_wilson_interval_is_scipys(num_correct: int, n: int, confidence: float) -> None:
    expected = binomtest(num_correct, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(num_correct, n, confidence)
    assert low == pytest.approx(expected.low, abs=1e-9)
    assert high == pytest.approx(expected.high, abs=1e-9)


def test_a_share_comes_with_its_interval() -> None:
    low, high = wilson_interval(3, 4)
    assert share(3, 4) == Share(top1=0.75, low=low, high=high, n=4)


@pytest.mark.parametrize(
    ("only_first", "only_second", "both"), [(0, 0, 5), (3, 9, 8), (12, 1, 0), (200, 260, 40)]
)
def test_the_paired_p_is_scipys_exact_binomial(
    only_first: int, only_second: int, both: int
) -> None:
    discordant, n = only_first + only_second, only_first + only_second + both
    measured = paired_test(only_first, only_second, n)
    expected = binomtest(only_first, discordant).pvalue if discordant else 1.0
    assert measured.p_value == pytest.approx(expected, rel=1e-9)
    assert measured.difference == pytest.approx((only_second - only_first) / n)
    assert measured.low <= measured.difference <= measured.high


def test_the_paired_interval_follows_agresti_and_min() -> None:
    measured = paired_test(only_first=30, only_second=10, n=100)
    centre = (10.5 - 30.5) / 102
    half = 1.959963985 * math.sqrt((30.5 + 10.5) - (10.5 - 30.5) ** 2 / 102) / 102
    assert (measured.low, measured.high) == pytest.approx((centre - half, centre + half))


def test_holm_steps_down_and_never_falls() -> None:
    # By hand: 5 x 0.01, 4 x 0.02, 3 x 0.03; then 2 x 0.04 and 0.05 would fall below.
    adjusted = holm([0.01, 0.02, 0.03, 0.04, 0.05])
    assert adjusted == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])


@pytest.mark.parametrize("p_values", list(itertools.permutations([0.001, 0.02, 0.02, 0.9])))
def test_holm_rejects_what_the_closed_test_of_bonferroni_rejects(p_values: tuple[float]) -> None:
    """Marcus, Peritz and Gabriel 1976: a hypothesis falls when every set that holds it does."""
    for level in (0.004, 0.03, 0.05, 0.061):
        sets = [
            group
            for size in range(1, 5)
            for group in itertools.combinations(range(4), size)
            if min(p_values[k] for k in group) > level / len(group)
        ]
        closed = [not any(k in group for group in sets) for k in range(4)]
        assert [p <= level for p in holm(p_values)] == closed


def test_holm_of_one_test_or_none_changes_nothing() -> None:
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


VALUES = [[0.71, 0.74, 0.69], [-0.002, 0.004, 0.001, 0.006, 0.003], [1.0, 2.0]]


@pytest.mark.parametrize("values", VALUES)
def test_the_interval_of_a_mean_is_scipys(values: list[float]) -> None:
    found = mean_interval(values)
    expected = scipy.stats.t.interval(
        0.95, len(values) - 1, loc=np.mean(values), scale=scipy.stats.sem(values)
    )
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-9)
    assert found.sd == pytest.approx(np.std(values, ddof=1))


@pytest.mark.parametrize("values", VALUES)
def test_the_paired_t_test_is_scipys(values: list[float]) -> None:
    second = np.linspace(0.1, 0.3, len(values))
    found = paired_t_test(values)
    expected = scipy.stats.ttest_rel(second + values, second)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert found.mean == pytest.approx(np.mean(values))


def test_one_value_has_no_spread_and_shows_nothing() -> None:
    assert mean_interval([0.7]) == MeanInterval(mean=0.7, sd=None, low=None, high=None, n=1)
    assert paired_t_test([0.7]).p_value is None


@pytest.mark.parametrize("difference", [0.0, 1 / 30])
def test_equal_differences_have_no_spread_and_show_nothing(difference: float) -> None:
    """Accuracies are counts: two or three seeds may well agree by chance."""
    assert paired_t_test([difference] * 3).p_value is None


def test_the_paired_t_test_is_wrong_as_often_as_it_says() -> None:
    """Of 2,000 experiments without an effect one in twenty is called one: 100 +- 3 sd of 9.7."""
    generator = np.random.default_rng(0)
    found = [paired_t_test(list(row)) for row in generator.normal(size=(2_000, 5))]
    assert 71 <= sum(test.p_value < 0.05 for test in found) <= 129
    covered = sum(test.low < 0 < test.high for test in found)
    assert covered == 2_000 - sum(test.p_value < 0.05 for test in found)
