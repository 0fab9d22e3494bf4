"""Statistics of hints and of batch norms, estimated on images before a stage starts."""

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
    "estimate_target_statistics",
    "reestimate_batch_norms",
]


class HintStatistics(nn.Module):
    """Standardizes hints per channel by fixed statistics: the results have mean 0 and standard
    deviation 1 on the images that the statistics are from.

    Otherwise the channel with the largest values would dominate the hint loss.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean_C: Tensor, std_C: Tensor, *, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis
        self.register_buffer("mean", mean_C.float())
        self.register_buffer("std", std_C.float())

    def forward(self, hint: Tensor) -> Tensor:
        """The standardized hint in float32, of the same shape."""
        mean, std = self._aligned(hint)
        return (hint.float() - mean) / std

    def inverse(self, standardized: Tensor) -> Tensor:
        """The values with this mean and standard deviation that standardize to the given ones."""
        mean, std = self._aligned(standardized)
        return standardized * std + mean

    def _aligned(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, shaped to broadcast with a value."""
        shape = [1] * like.dim()
        shape[self.channel_axis] = -1
        return self.mean.view(shape), self.std.view(shape)


def estimate_hint_statistics(
    hints: Iterable[Sequence[Tensor]], *, channel_axes: Sequence[int]
) -> list[HintStatistics]:
    """The statistics of each pair's hints over all batches.

    Standard deviations are at least a hundredth of the largest one, so that nearly constant
    channels (dead ReLUs) are not amplified.

    Args:
        hints: for each batch one value (N, ...) per pair.
        channel_axes: the channel axis of each value, counted with the batch.

    Raises:
        PlanError: there are no values, or some are not finite.
    """
    moments = [_Moments() for _ in channel_axes]
    for batch in hints:
        for moment, hint, axis in zip(moments, batch, channel_axes, strict=True):
            moment.add(hint.detach().movedim(axis, 0).flatten(1))
    return [
        HintStatistics(*moment.mean_and_std(), channel_axis=axis)
        for moment, axis in zip(moments, channel_axes, strict=True)
    ]


def estimate_target_statistics(
    teacher_cut: nn.Module,
    teacher_preprocess: nn.Module,
    regressors: Sequence[Regressor],
    batches: Iterable[Batch],
    *,
    num_batches: int,
) -> list[HintStatistics]:
    """The statistics of the regressors' targets, one per pair, for `HintMatcher`.

    Nothing is modified. The teacher runs in eval mode on its own device.

    Args:
        teacher_cut: returns a tuple of one hint per pair.
        teacher_preprocess: from uint8 images to the teacher's input or inputs, on its device.
        regressors: one per pair; they select the target from a hint.
        batches: training batches, of which the first `num_batches` are used.

    Raises:
        PlanError: there are no values, or some are not finite.
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
    """Sums over positions, in float64 because there are millions of terms."""

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
            raise PlanError(
                "estimating the statistics of the hints: expected finite values, got"
                f" {'none' if self._count == 0 else 'NaN or infinity'}",
                code="hint-not-finite",
                advice="Choose another layer with --hint, or --teacher-precision fp32.",
            )
        mean_C = self._sum_C / self._count
        std_C = (self._squares_C / self._count - mean_C.square()).clamp(min=0.0).sqrt()
        return mean_C, std_C.clamp(min=float(std_C.max()) / 100 or 1.0)


def reestimate_batch_norms(network: nn.Module, batches: Iterable[Batch], num_batches: int) -> int:
    """Replaces the running statistics of every batch norm by their mean over some batches.

    For a student with inherited weights, since the teacher's statistics do not hold for fewer
    channels. Dropout stays off. Modifies only the statistics; does nothing without batches.

    Args:
        network: takes uint8 images, on its own device.
        batches: training batches, of which the first `num_batches` are used.

    Returns:
        The number of re-estimated batch norms.
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
