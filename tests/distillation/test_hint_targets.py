"""Controls for the teacher's hints; their moments are compared with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fitcompress.data.views import Batch
from fitcompress.distillation.hint_targets import (
    HintTargets,
    LabelHints,
    MatchedMoments,
    RandomHints,
    ShuffledHints,
)
from fitcompress.distillation.statistics import estimate_hint_statistics


def batch_of(ids, labels=None) -> Batch:
    ids = torch.tensor(list(ids))
    labels = torch.zeros(len(ids), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Batch(torch.zeros(len(ids), 3, 2, 2, dtype=torch.uint8), labels, ids)


def never():
    raise AssertionError("the teacher was run")


def some_hints(num: int, *shape: int):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num, *shape, generator=generator).exp()  # skewed, correlated below


def test_the_teachers_hints_are_not_changed():
    hints = (some_hints(4, 2),)
    assert HintTargets()(batch_of(range(4)), lambda: hints) is hints


def test_shuffled_hints_are_those_of_other_images():
    hints = some_hints(6, 3, 2, 2)
    (shuffled,) = ShuffledHints()(batch_of(range(6)), lambda: (hints,))
    assert torch.equal(shuffled[1:], hints[:-1]) and torch.equal(shuffled[0], hints[-1])


def test_random_hints_have_the_mean_and_covariance_of_real_ones():
    hints = some_hints(9, 2, 2) @ torch.tensor([[1.0, 0.8], [0.0, 0.6]])
    (drawn,) = RandomHints([hints], seed=0)(batch_of(range(40_000)), never)
    rows, own = drawn.flatten(1).numpy(), hints.flatten(1).numpy()
    # the error of a mean of 40,000 is a 200th of the deviation; four of these are allowed
    np.testing.assert_allclose(rows.mean(0), own.mean(0), atol=4 * own.std() / 200)
    np.testing.assert_allclose(np.cov(rows.T), np.cov(own.T), atol=0.03 * np.cov(own.T).max())


def test_a_random_hint_belongs_to_its_sample_and_seed():
    hints = [some_hints(9, 2, 2), some_hints(9, 5)]
    make = RandomHints(hints, seed=3)
    first, second = make(batch_of([7, 8, 9]), never), make(batch_of([9, 7]), never)
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one[[2, 0]], two)
        assert not torch.equal(one[0], one[1])
    (other, _) = RandomHints(hints, seed=4)(batch_of([7]), never)
    assert not torch.equal(other[0], first[0][0])


def test_labels_are_one_hot_and_shares_under_mixup():
    targets = LabelHints(num_classes=3, num_pairs=2)(batch_of([0, 1], labels=[2, 0]), never)
    assert [target.tolist() for target in targets] == [[[0, 0, 1], [1, 0, 0]]] * 2
    plain = batch_of([0], labels=[2])
    mixed = Batch(
        plain.images, plain.labels, plain.ids, torch.tensor([1]), torch.tensor([0.75]), ()
    )
    (shares,) = LabelHints(num_classes=3, num_pairs=1)(mixed, never)
    assert shares.tolist() == [[0.0, 0.25, 0.75]]


@pytest.mark.parametrize("axis", [1, -1])
def test_matched_moments_are_the_wanted_ones_channel_by_channel(axis):
    class Two(nn.Module):
        def forward(self, x):
            return (x,)

    own, wanted = some_hints(50, 3, 4), 2 - 5 * some_hints(70, 3, 4)
    axis %= 3
    (one,), (two,) = (
        estimate_hint_statistics([(values,)], channel_axes=[axis]) for values in (own, wanted)
    )
    (matched,) = MatchedMoments(Two(), [one], [two])(own)
    others = tuple(dim for dim in range(3) if dim != axis)
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(
            moment(matched.numpy(), axis=others), moment(wanted.numpy(), axis=others), rtol=1e-4
        )
