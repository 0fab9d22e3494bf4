"""Statistics estimated on images before a stage starts: of the teacher's hints, and of batch norms.
Layer: training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fitcompress.data.views import Batch
from fitcompress.distillation.regressors import Regressor
from fitcompress.errors import PlanError
from fitcompress.modes import preserved_modes

__all__ = [
    "HintStatistics",
    "estimate_hint_statistics",
    "reestimate_batch_norms",
    "standardise_hints",
]


class HintStatistics(nn.Module):
    """Standardises hints per channel by frozen statistics: the answer has mean 0 and deviation 1 on
    the images they come from.

    Without it the channel with the largest values owns the hint loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_C: Tensor, std_C: Tensor, *, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.register_buffer("mean", mean_C.float())
        self.register_buffer("std", std_C.float())

    def forward(self, hint: Tensor) -> Tensor:
        """The standardised hint in float32, of the same shape."""
        mean, std = self._aligned(hint)
        return (hint.float() - mean) / std

    def restored(self, standardised: Tensor) -> Tensor:
        """Values with this mean and deviation, from standardised ones."""
        mean, std = self._aligned(standardised)
        return standardised * std + mean

    def _aligned(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = [1] * like.dim()
        shape[self.channel_axis] = -1
        return self.mean.view(shape), self.std.view(shape)


def estimate_hint_statistics(
    hints: Iterable[Sequence[Tensor]], *, channel_axes: Sequence[int]
) -> list[HintStatistics]:
    """The statistics of each hint over all batches together.

    A channel that hardly moves (a dead ReLU) is not blown up: no deviation counts as less than a
    hundredth of the largest one.

    Args:
        hints: for each batch one value (N, ...) per pair.
        channel_axes: where each of them has its channels, the batch counted.

    Raises:
        PlanError: there are no values, or some that are not finite.
    """
    moments = [_Moments() for _ in channel_axes]
    for batch in hints:
        for moment, hint, axis in zip(moments, batch, channel_axes, strict=True):
            moment.add(hint.detach().movedim(axis, 0).flatten(1))
    return [
        HintStatistics(*moment.mean_and_std(), channel_axis=axis)
        for moment, axis in zip(moments, channel_axes, strict=True)
    ]


def standardise_hints(
    teacher_cut: nn.Module,
    teacher_preprocess: nn.Module,
    regressors: Sequence[Regressor],
    batches: Iterable[Batch],
    *,
    num_batches: int,
) -> list[HintStatistics]:
    """The statistics of the hints that enter the loss, one per pair, for `HintObjective`.

    Nothing is modified; the teacher runs in eval mode, on its own device.

    Args:
        teacher_cut: returns a tuple with one hint per pair.
        teacher_preprocess: uint8 images to its input or inputs, on the same device.
        regressors: one per pair; they know what of the hint is the target.
        batches: training batches, of which the first `num_batches` are used.

    Raises:
        PlanError: there are no values, or some that are not finite.
    """

    def targets() -> Iterator[list[Tensor]]:
        for batch in islice(batches, num_batches):
            inputs = teacher_preprocess(batch.images.to(_device_of(teacher_cut)))
            hints = teacher_cut(*((inputs,) if isinstance(inputs, Tensor) else inputs))
            yield [part.target(hint) for part, hint in zip(regressors, hints, strict=True)]

    axes = [regressor.channel_axis for regressor in regressors]
    with preserved_modes(teacher_cut.modules()), torch.no_grad():
        teacher_cut.eval()
        return estimate_hint_statistics(targets(), channel_axes=axes)


class _Moments:
    """Sums over positions in float64: there are millions of squares."""

    def __init__(self) -> None:
        self._count = 0
        self._sum_C = self._squares_C = torch.zeros(())

    def add(self, values_CM: Tensor) -> None:
        # Apple's GPUs have no float64.
        precise_CM = (values_CM.cpu() if values_CM.device.type == "mps" else values_CM).double()
        self._count += precise_CM.shape[1]
        self._sum_C = self._sum_C + precise_CM.sum(1).cpu()
        self._squares_C = self._squares_C + precise_CM.square().sum(1).cpu()

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        if self._count == 0 or not torch.isfinite(self._squares_C).all():
            raise PlanError("estimating the hint's statistics: the teacher gave no finite values")
        mean_C = self._sum_C / self._count
        std_C = (self._squares_C / self._count - mean_C.square()).clamp(min=0.0).sqrt()
        return mean_C, std_C.clamp(min=float(std_C.max()) / 100 or 1.0)


def reestimate_batch_norms(network: nn.Module, batches: Iterable[Batch], num_batches: int) -> int:
    """Replaces the running statistics of every batch norm by the mean over some batches.

    For a student whose weights were inherited: the teacher's statistics are not those of fewer
    channels. Dropout stays off. Only the statistics are modified. Without batches nothing is.

    Args:
        network: takes the uint8 images of a batch, on its own device.
        batches: training batches, of which the first `num_batches` are used.

    Returns:
        The number of batch norms that were re-estimated.
    """
    norms = [
        part
        for part in network.modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats
    ]
    images = [batch.images for batch in islice(batches, num_batches)]
    if not norms or not images:
        return 0
    device = _device_of(network)
    momenta = [norm.momentum for norm in norms]
    with preserved_modes(network.modules()), torch.no_grad():
        network.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        try:
            for images_NCHW in images:
                network(images_NCHW.to(device))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)


def _device_of(network: nn.Module) -> torch.device:
    return next((value.device for value in network.parameters()), torch.device("cpu"))
