"""Random inputs for running a program."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from fitcompress.graph.program import InputInfo

__all__ = ["random_input"]


def random_input(info: InputInfo, batch_size: int, generator: Generator) -> Tensor:
    """A batch of values that any network with this input accepts: normally distributed floats, or
    integers 0 and 1, which are valid indices of any embedding.
    """
    shape = (batch_size, *info.shape)
    if info.dtype.is_floating_point or info.dtype.is_complex:
        return torch.randn(shape, generator=generator).to(info.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(info.dtype)
