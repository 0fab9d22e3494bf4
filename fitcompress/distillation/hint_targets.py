"""What the guided values are trained towards: the teacher's hints, or a control that lacks
something of them. Layer: training.

The controls answer what a hint's effect is due to: to what the teacher knows of the image, or to
another path for gradients. Each has the shape of the hint and, but for labels, its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
"""The teacher's hints for a batch, one (N, ...) for each pair; computed when called."""


class HintTargets(nn.Module):
    """The teacher's hints as they are."""

    needs_teacher = True

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        """One target (N, ...) for each pair; `teacher_hints` gives the teacher's hints."""
        return teacher_hints()


class ShuffledHints(HintTargets):
    """The teacher's hints for another image: the one before it in the batch, so in every epoch
    for another other one. They have the distribution of hints and say nothing of the image.
    """

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        return [hint.roll(1, dims=0) for hint in teacher_hints()]


class RandomHints(HintTargets):
    """For each sample a vector drawn once, with the mean and covariance of real hints.

    It is the hints' mean plus a combination of their deviations from it with independent normal
    weights: normal, with exactly the sample covariance of the `M` hints given, which is never
    formed (a map has too many elements for it).

    Args:
        hints: for each pair real hints (M, ...) of the same M >= 2 images.
        seed: of the draws, which depend on it and on the sample's id alone.
    """

    needs_teacher = False

    def __init__(self, hints: Sequence[Tensor], seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.num = len(hints[0])
        assert self.num >= 2, "one hint has no covariance"
        self.normals = nn.ModuleList(map(_Normal, hints))

    def forward(self, batch: Batch, teacher_hints: Hints) -> Sequence[Tensor]:  # noqa: ARG002
        bits = random_bits(self.seed, Stream.RANDOM_HINT, batch.ids.tolist(), epoch=0, num=self.num)
        uniform_NM = torch.from_numpy(to_uniform(bits)).clamp(min=2.0**-54)
        weights_NM = torch.special.ndtri(uniform_NM).float().to(batch.images.device)
        return [normal(weights_NM) for normal in self.normals]


class _Normal(nn.Module):
    """The normal distribution with the mean and covariance of some values (M, ...)."""

    mean: Tensor
    deviations: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        mean = values.mean(0)
        self.register_buffer("mean", mean)
        self.register_buffer("deviations", (values - mean).flatten(1) / (len(values) - 1) ** 0.5)

    def forward(self, weights_NM: Tensor) -> Tensor:
        """A draw (N, ...) for each row of M independent standard normal numbers."""
        drawn_ND = weights_NM @ self.deviations
        return self.mean + drawn_ND.reshape(-1, *self.mean.shape)


class LabelHints(HintTargets):
    """The labels, one-hot (N, K), for each pair; shares where mixup is on.

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
    """A network whose values get, channel by channel, the mean and deviation of others.

    Args:
        network: returns a tuple of values (N, ...).
        own: the statistics of each of them.
        wanted: those that they get.
    """

    def __init__(
        self, network: nn.Module, own: Sequence[HintStatistics], wanted: Sequence[HintStatistics]
    ) -> None:
        super().__init__()
        self.network = network
        self.own, self.wanted = nn.ModuleList(own), nn.ModuleList(wanted)
        self._moments = list(zip(own, wanted, strict=True))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = zip(self.network(*inputs), self._moments, strict=True)
        return tuple(wanted.restored(own(value)) for value, (own, wanted) in values)
