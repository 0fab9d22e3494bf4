"""A network to export, with the samples that its exports are checked on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.environment import package_version
from fitcompress.interface import Interface, interface_to_metadata

__all__ = ["Exportable"]


@dataclass(frozen=True)
class Exportable:
    """A network to export, and what the formats need besides."""

    network: nn.Module
    """From normalized float32 images (N, C, H, W), or other inputs, to outputs. Never modified."""
    interface: Interface
    samples: Tensor | tuple[Tensor, ...]
    """About eight real images, preprocessed, to check exports on; for a network with other inputs,
    a tensor for each of them.
    """
    folder: Path | None = None
    """The network's model folder, from which the safetensors and python formats are made."""
    opset: int | None = None
    """Of ONNX; None leaves the choice to torch."""
    with_preprocessing: Callable[[], Exportable] | None = None
    """Gives the network with preprocessing before it and probabilities behind it, on uint8 images;
    None for networks that take no images.
    """
    calibration: Callable[[], Iterable[Tensor]] | None = None
    """Batches of preprocessed training images, from which int8 takes the ranges of activations."""
    score: Callable[[nn.Module], float] | None = None
    """How good a network with the same inputs is, from 0 to 1; bounds what int8 may lose."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The samples as one tensor per input."""
        return (self.samples,) if isinstance(self.samples, Tensor) else self.samples

    @property
    def dynamic_shapes(self) -> tuple[dict[int, Any], ...]:
        """For `torch.export`: the batch size of each input is dynamic."""
        return ({0: torch.export.Dim("batch")},) * len(self.inputs)

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """The inputs for `count` samples, which repeat if there are fewer."""
        return tuple(values[torch.arange(count) % len(values)] for values in self.inputs)

    def metadata(self, *, takes_pixels: bool = False) -> dict[str, str]:
        """Entries that describe inputs and outputs in an exported file.

        takes_pixels: whether the file includes its preprocessing.
        """
        version = package_version("fitcompress") or "unknown"
        return interface_to_metadata(self.interface, version, takes_pixels=takes_pixels)

    def on_cpu(self) -> Exportable:
        """The same on the CPU; the network is copied if it is elsewhere."""
        network = self.network
        tensors = [*network.parameters(), *network.buffers()]
        if any(tensor.device.type != "cpu" for tensor in tensors):
            network = copy.deepcopy(network).cpu()
        samples = tuple(values.detach().cpu() for values in self.inputs)
        return replace(self, network=network, samples=samples)
