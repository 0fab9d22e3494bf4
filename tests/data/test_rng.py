"""The counter-based random numbers: pure, independent, and distributed as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fitcompress.data.rng import Stream, permutation, random_bits, to_beta, to_uniform


def test_bits_of_a_sample_do_not_depend_on_the_other_samples():
    together = random_bits(3, Stream.VIEW, range(50), epoch=2, num=5)
    backwards = random_bits(3, Stream.VIEW, range(49, -1, -1), epoch=2, num=5)
    alone = random_bits(3, Stream.VIEW, [17], epoch=2, num=5)

    np.testing.assert_array_equal(together, backwards[::-1])
    np.testing.assert_array_equal(together[17:18], alone)


def test_fewer_bits_are_the_first_of_more():
    more = random_bits(3, Stream.VIEW, [4], epoch=0, num=9)

    np.testing.assert_array_equal(more[:, :3], random_bits(3, Stream.VIEW, [4], epoch=0, num=3))


def test_bits_are_those_of_a_new_philox_with_that_key_and_counter():
    bits = random_bits(11, Stream.MIX, [5, 6], epoch=7, num=6)

    for sample, row in zip((5, 6), bits, strict=True):
        philox = np.random.Philox(key=[11, int(Stream.MIX)], counter=[0, 0, sample, 7])
        np.testing.assert_array_equal(row, philox.random_raw(6))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"seed": 1}, id="seed"),
        pytest.param({"stream": Stream.MIX}, id="stream"),
        pytest.param({"epoch": 1}, id="epoch"),
        pytest.param({"samples": [10, 11, 12]}, id="samples"),
    ],
)
def test_every_argument_changes_all_bits(other):
    first = {"seed": 0, "stream": Stream.VIEW, "samples": [0, 1, 2], "epoch": 0, "num": 8}

    assert not np.intersect1d(random_bits(**first), random_bits(**(first | other))).size


def test_negative_and_huge_seeds_are_allowed():
    assert random_bits(-1, Stream.VIEW, [0], epoch=0, num=1).dtype == np.uint64
    assert random_bits(2**70, Stream.VIEW, [0], epoch=0, num=1).dtype == np.uint64


def test_no_samples_give_no_rows():
    assert random_bits(0, Stream.VIEW, [], epoch=0, num=3).shape == (0, 3)


def test_order_is_a_permutation_that_changes_with_the_epoch():
    first, second = (permutation(100, 0, Stream.ORDER, epoch=epoch) for epoch in (0, 1))

    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    assert (first != second).any()
    np.testing.assert_array_equal(first, permutation(100, 0, Stream.ORDER, epoch=0))


def test_uniform_numbers_are_uniform():
    numbers = to_uniform(random_bits(0, Stream.VIEW, range(5000), epoch=0, num=3))

    assert numbers.min() >= 0 and numbers.max() < 1
    for column in numbers.T:  # the chance of a false alarm is 1e-4, and the numbers never change
        assert stats.kstest(column, "uniform").pvalue > 1e-4


def test_uniform_numbers_of_the_extreme_bits():
    extremes = to_uniform(np.array([0, 2**64 - 1], dtype=np.uint64))

    assert extremes.tolist() == [0.0, 1 - 2.0**-53]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_beta_numbers_have_the_beta_distribution(alpha):
    bits = random_bits(0, Stream.MIX, range(3000), epoch=0, num=1)[:, 0]

    assert stats.kstest(to_beta(bits, alpha), stats.beta(alpha, alpha).cdf).pvalue > 1e-4
