"""Stratified samples: sizes, shares, purity."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcompress.data.rng import Stream
from fitcompress.data.sampling import hold_out, stratified_sample


def sample(labels, num, seed=0):
    return stratified_sample(np.array(labels), num, seed=seed, stream=Stream.LIMIT)


def test_equal_classes_give_equal_shares():
    labels = np.repeat(np.arange(10), 30)

    chosen = sample(labels, 50)

    assert np.bincount(labels[chosen]).tolist() == [5] * 10


def test_unequal_classes_give_their_shares():
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)

    assert np.bincount(labels[sample(labels, 20)]).tolist() == [16, 3, 1]


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=80),
    num=st.integers(0, 100),
    seed=st.integers(0, 5),
)
def test_sample_has_the_requested_size_and_each_class_its_share_within_one(labels, num, seed):
    chosen = sample(labels, num, seed)

    assert len(chosen) == min(num, len(labels))
    assert (np.diff(chosen) > 0).all()
    for label in set(labels):
        share = min(num, len(labels)) * labels.count(label) / len(labels)
        assert abs(sum(labels[i] == label for i in chosen) - share) < 1


def test_sample_is_pure_and_changes_with_the_seed():
    labels = np.repeat([0, 1], 100)

    np.testing.assert_array_equal(sample(labels, 20), sample(labels, 20))
    assert not np.array_equal(sample(labels, 20), sample(labels, 20, seed=1))


def test_what_is_left_over_does_not_always_go_to_the_first_classes():
    labels = np.repeat(np.arange(100), 2)
    lucky = [set(labels[sample(labels, 10, seed)].tolist()) for seed in range(5)]

    assert len(set.union(*lucky)) > 20


@given(
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=80),
    fraction=st.sampled_from([0.1, 0.2]),
)
def test_hold_out_splits_all_and_leaves_each_class_something(labels, fraction):
    kept, held = hold_out(np.array(labels), fraction, seed=0, stream=Stream.HELD_OUT_SPLIT)

    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert {labels[i] for i in kept} == set(labels)
    assert len(held) <= max(1, round(fraction * len(labels)))
    assert len(held) > 0 or len(set(labels)) == len(labels)


def test_hold_out_of_equal_classes_is_a_tenth_of_each():
    labels = np.repeat(np.arange(10), 50)

    _, held = hold_out(labels, 0.1, seed=0, stream=Stream.HELD_OUT_SPLIT)

    assert np.bincount(labels[held]).tolist() == [5] * 10


@pytest.mark.parametrize("labels", [[0], [0, 1, 2]], ids=["one image", "one image a class"])
def test_nothing_is_held_out_where_no_class_has_two(labels):
    kept, held = hold_out(np.array(labels), 0.1, seed=0, stream=Stream.HELD_OUT_SPLIT)

    assert kept.tolist() == list(range(len(labels)))
    assert held.size == 0
