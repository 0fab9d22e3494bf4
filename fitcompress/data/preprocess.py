"""Preprocessing on the device: from a uint8 batch to a network's normalized input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fitcompress.errors import RecipeError
from fitcompress.interface import InputSpec

__all__ = ["Preprocess"]

_LUMA = (0.299, 0.587, 0.114)
"""Weights of ITU-R BT.601, as in Pillow's and torchvision's conversions to gray."""


class Preprocess(nn.Module):
    """uint8 NCHW -> float32 NCHW of the network's size and channels, (x / 255 - mean) / std.

    Teacher and student have one each, so that they see the same views at their own sizes and
    normalizations. Its buffers are not in the state dict. Images of another size are resized
    (bilinear, antialiased).

    Raises:
        RecipeError: neither 1 nor 3 channels, or not one mean and positive standard deviation per
            channel.
    """

    mean: Tensor
    std: Tensor
    luma: Tensor

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        channels, self.height, self.width = spec.shape
        if channels not in (1, 3) or len(spec.mean) != channels or len(spec.std) != channels:
            raise RecipeError(
                "normalizing images: expected 1 or 3 channels with a mean and a std each, "
                f"got {channels} channels, mean {spec.mean}, std {spec.std}",
                code="normalization-mismatch",
                advice="Correct --input-size, --mean and --std.",
                channels=channels,
                mean=list(spec.mean),
                std=list(spec.std),
            )
        if min(spec.std) <= 0:
            raise RecipeError(
                f"normalizing images: expected positive standard deviations, got {spec.std}",
                code="std-not-positive",
                advice="Correct --std.",
                std=list(spec.std),
            )
        self.channels = channels
        for name, values in (("mean", spec.mean), ("std", spec.std), ("luma", _LUMA)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x_NCHW = images_NCHW.to(self.mean.dtype) / 255
        if x_NCHW.shape[1] != self.channels:
            x_NCHW = self._match_channels(x_NCHW)
        if x_NCHW.shape[-2:] != (self.height, self.width):
            size = (self.height, self.width)
            x_NCHW = functional.interpolate(x_NCHW, size, mode="bilinear", antialias=True)
        return (x_NCHW - self.mean) / self.std

    def _match_channels(self, x_NCHW: Tensor) -> Tensor:
        if self.channels == 3:
            return x_NCHW.expand(-1, 3, -1, -1)
        return (x_NCHW * self.luma).sum(dim=1, keepdim=True)
