"""Targets of the guided values: the teacher's hints, or controls.

The controls show what the effect of a hint is due to: to the teacher's knowledge of the image, or
just to another path for gradients. Each has the shape of the hint and, except for labels, its
moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fitcompress.data.rng import Stream, random_bits, to_uniform
from fitcompress.data.views import Batch
from fitcompress.distillation.objectives import label_targets
from fitcompress.distillation.statistics import HintStatistics

__all__ = [
    "HintTargets",
    "LabelHints",
    "MatchedMoments",
    "RandomHints",
    "ShuffledHints",
]

Hints = Callable[[], Sequence[Tensor]]
"""Returns the teacher's hints for a batch, (N, ...) per pair; computes them when called."""


class HintTargets(nn.Module):
    """The teacher's hints, unchanged."""

    needs_teacher = True

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        """One target (N, ...) per pair."""
        return teacher_hints()


class ShuffledHints(HintTargets):
    """The teacher's hints for the previous image in the batch, a different one in every epoch: the
    distribution of hints, without information about the image.
    """

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        return [hint.roll(1, dims=0) for hint in teacher_hints()]


class RandomHints(HintTargets):
    """A fixed normal vector per sample, with the mean and covariance of real hints.

    It is the mean of M real hints plus their deviations from it, weighted by M independent normal
    numbers. That has exactly their sample covariance, which is too large to compute for maps.

    Args:
        hints: real hints (M, ...) per pair, of the same M >= 2 images.
        seed: the vectors depend on it and on the sample's id.
    """

    needs_teacher = False

    def __init__(self, hints: Sequence[Tensor], seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.num = len(hints[0])
        assert self.num >= 2, "a covariance needs two hints"
        self.normals = nn.ModuleList(map(_Normal, hints))

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        bits = random_bits(self.seed, Stream.RANDOM_HINT, batch.ids.tolist(), epoch=0, num=self.num)
        uniform_NM = torch.from_numpy(to_uniform(bits)).clamp(min=2.0**-54)
        weights_NM = torch.special.ndtri(uniform_NM).float().to(batch.images.device)
        return [normal(weights_NM) for normal in self.normals]


class _Normal(nn.Module):
    """The normal distribution with the mean and covariance of M values (M, ...)."""

    mean: Tensor
    deviations: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        mean = values.mean(0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviations", (values - mean).flatten(1) / (len(values) - 1) ** 0.5)

    def forward(self, weights_NM: Tensor) -> Tensor:
        """Vectors (N, ...), from M independent standard normal numbers each."""
        drawn_ND = weights_NM @ self.deviations
        return self.mean + drawn_ND.reshape(-1, *self.mean.shape)


class LabelHints(HintTargets):
    """The labels, one-hot (N, K), for every pair; class shares with mixup.

    Source: the label-as-hint controls of FitNets (arXiv 1412.6550v4), section 4.1.
    """

    needs_teacher = False

    def __init__(self, num_classes: int, num_pairs: int) -> None:
        super().__init__()
        self.num_classes, self.num_pairs = num_classes, num_pairs

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        targets = label_targets(batch, self.num_classes)
        if targets.dim() == 1:
            targets = nn.functional.one_hot(targets, self.num_classes).float()
        return [targets] * self.num_pairs


class MatchedMoments(nn.Module):
    """Rescales a network's values to other means and standard deviations per channel.

    Args:
        network: returns a tuple of values (N, ...).
        own: the statistics of each value.
        wanted: the statistics to rescale to.
    """

    def __init__(
        self, network: nn.Module, own: Sequence[HintStatistics], wanted: Sequence[HintStatistics]
    ) -> None:
        super().__init__()
        self.network = network
        assert len(own) == len(wanted), (len(own), len(wanted))
        self.own, self.wanted = nn.ModuleList(own), nn.ModuleList(wanted)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        wanted = cast("Sequence[HintStatistics]", self.wanted)
        parts = zip(self.network(*inputs), self.own, wanted, strict=True)
        return tuple(goal.inverse(own(value)) for value, own, goal in parts)
