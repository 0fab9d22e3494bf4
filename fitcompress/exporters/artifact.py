"""What is exported: a network, its interface, and images to check and calibrate with."""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.interface import Interface

__all__ = ["Exportable", "on_cpu", "quiet"]


@dataclass(frozen=True)
class Exportable:
    """What is exported."""

    network: nn.Module
    """Normalised float32 images (N, C, H, W), or other inputs, -> outputs. Never changed."""
    interface: Interface
    samples: Tensor | tuple[Tensor, ...]
    """Real images as the network takes them, for the checks, some eight; or the tensors of a
    network that takes others, with as many rows each.
    """
    folder: Path | None = None
    """Its model folder, which the safetensors and the python format are made from."""
    opset: int | None = None
    """Of ONNX; None is the exporter's own choice."""
    with_pixels: Callable[[], Exportable] | None = None
    """The same network behind its preprocessing and before its probabilities, with its samples."""
    calibration: Callable[[], Iterable[Tensor]] | None = None
    """Batches of training images as the network takes them."""
    score: Callable[[nn.Module], float] | None = None
    """How good a network is that takes what this one takes, from 0 to 1: what int8 may lose."""

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The samples, one tensor an input."""
        return (self.samples,) if isinstance(self.samples, Tensor) else self.samples

    def rows(self, count: int) -> tuple[Tensor, ...]:
        """The inputs of so many samples; repeated where there are fewer."""
        return tuple(values[torch.arange(count) % len(values)] for values in self.inputs)


def output_list(value: Any) -> list[Tensor]:
    parts = list(value) if isinstance(value, (tuple, list)) else [value]
    return [part.float() for part in parts]


def on_cpu(source: Exportable) -> Exportable:
    """The source on the CPU; a copy when it lies elsewhere."""
    network, tensors = source.network, [*source.network.parameters(), *source.network.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        network = copy.deepcopy(network).cpu()
    samples = tuple(values.detach().cpu() for values in source.inputs)
    return replace(source, network=network, samples=samples)


@contextmanager
def quiet() -> Iterator[None]:
    """No output, warnings or log lines of converters inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
