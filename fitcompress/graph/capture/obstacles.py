"""Calls that a graph cannot contain, and the errors for them.

A graph is the same for every input. A call that turns the values of a tensor into a number, a
branch or a size would be recorded with the result of one particular run.
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
    """Whether the call returns numbers or sizes that depend on the values of its tensors."""
    if call is aten.index.Tensor:
        masks = (torch.bool, torch.uint8)
        return any(value.dtype in masks for value in tensors_in(args[1:]))
    if call is aten.one_hot.default:  # -1: the number of classes is the largest value plus one
        return bool([*args[1:], *kwargs.values(), -1][0] == -1)
    tags = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
    return call is aten.is_nonzero.default or any(tag in call.tags for tag in tags)


def value_read(source: str, call: object, line: str = "") -> ObstacleError:
    """The error for a network whose computation depends on the values of its input."""
    return ObstacleError(
        f"capturing {source}: what it computes depends on the values of its input"
        f" ({_place(call, line)})",
        code="value-dependent-network",
        advice="Use a version of the model that runs the same operations for every input.",
        call=str(call),
        line=line,
    )


def quantized_call(source: str, call: object, line: str = "") -> ObstacleError:
    """The error for a quantized network."""
    return ObstacleError(
        f"capturing {source}: it is quantized ({_place(call, line)})",
        code="quantized-network",
        advice="Distill the original float model; the student can be quantized.",
        call=str(call),
        line=line,
    )


def foreign_call(source: str, call: object, line: str = "") -> ObstacleError:
    """The error for a call of a custom operator."""
    return ObstacleError(
        f"capturing {source}: expected ATen calls only, got {_place(call, line)}",
        code="custom-operator",
        advice="Custom operators are not supported. Use a plain PyTorch version of the layer.",
        call=str(call),
        line=line,
    )


def _place(call: object, line: str) -> str:
    return f"'{call}' in `{line}`" if line else f"'{call}'"
