"""Which calls no graph can hold, and how that is said. Layer: graph.

A graph computes the same for every input. What turns the values of a tensor into a number, a branch
or a size does not: written down once, it would keep the answer of one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from fitcompress.errors import ObstacleError
from fitcompress.graph.nests import tensors_in

__all__ = ["foreign_call", "quantized_call", "reads_values", "value_read"]

aten = torch.ops.aten


def reads_values(call: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether numbers or sizes come out of the values of the tensors that the call is given."""
    if call is aten.index.Tensor:
        masks = (torch.bool, torch.uint8)
        return any(value.dtype in masks for value in tensors_in(args[1:]))
    if call is aten.one_hot.default:  # how many classes there are, where it is not said
        return bool([*args[1:], *kwargs.values(), -1][0] == -1)
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return call is aten.is_nonzero.default or any(tag in call.tags for tag in tags)


def value_read(source: str, call: object, line: str = "") -> ObstacleError:
    """Of a network that does one thing for one input and another for the next."""
    return ObstacleError(
        f"capturing {source}: what it does depends on the values that it is given"
        f" ({_place(call, line)})",
        advice="Distil a form of it that does the same for every input.",
    )


def quantized_call(source: str, call: object, line: str = "") -> ObstacleError:
    """Of a network that does not compute on floats."""
    return ObstacleError(
        f"capturing {source}: it holds quantized values ({_place(call, line)})",
        advice="Distil the float model that it was made from; a student can be quantized.",
    )


def foreign_call(source: str, call: object, line: str = "") -> ObstacleError:
    """Of a call that belongs to some extension of torch."""
    return ObstacleError(
        f"capturing {source}: it calls {_place(call, line)}, which is not ATen",
        advice="Custom operators are not supported; use a plain PyTorch form of the layer.",
    )


def _place(call: object, line: str) -> str:
    return f"'{call}' in `{line}`" if line else f"'{call}'"
