"""How a person makes the module that computes a call. Layer: graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fitcompress.exporters.python.expressions import (
    Writer,
    argument_text,
    given_arguments,
    short_form,
)
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.program import named_arguments, operation

__all__ = ["has_module", "leaf_text", "module_text"]

_MODULES = {
    "relu": "ReLU",
    "gelu": "GELU",
    "silu": "SiLU",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "elu": "ELU",
    "leaky_relu": "LeakyReLU",
    "hardswish": "Hardswish",
    "hardsigmoid": "Hardsigmoid",
    "max_pool2d": "MaxPool2d",
    "avg_pool2d": "AvgPool2d",
    "adaptive_avg_pool2d": "AdaptiveAvgPool2d",
    "dropout": "Dropout",
    "flatten": "Flatten",
}
"""Calls without tensors of their own that a module makes too; arguments have the same names."""


def has_module(node: Node) -> bool:
    """Whether `module_text` can write the call."""
    if operation(node) not in _MODULES or len(node.all_input_nodes) != 1:
        return False
    return all(not isinstance(value, Node) for value in node.args[1:])


def module_text(node: Node, writer: Writer) -> str:
    """The module that makes the call of a value."""
    given = {**given_arguments(node)} if operation(node) != "flatten" else named_arguments(node)
    options = {k: v for k, v in given.items() if k not in ("self", "input", "train")}
    return _constructor(_MODULES[operation(node)], options, writer, "")


def leaf_text(leaf: Leaf, dtype: torch.dtype, writer: Writer) -> str:
    """The module that makes a leaf's call.

    dtype: that of its parameters.
    """
    name = leaf.path.rpartition(".")[2]
    text = _constructor(leaf.kind, dict(leaf.options), writer, name)
    return text if dtype is torch.float32 else f"{text[:-1]}, dtype={dtype})"


def _constructor(kind: str, options: Mapping[str, Any], writer: Writer, name: str) -> str:
    parameters = inspect.signature(getattr(nn, kind)).parameters
    positional, rest = [], ""
    for key, given in options.items():
        value, role = short_form(key, given), f"{name}.{key}"
        if key == "normalized_shape" and len(value) == 1:
            (value,) = value
        default = parameters[key].default
        if default is inspect.Parameter.empty:
            positional.append(writer.number(value, role))
        elif isinstance(value, (bool, str)):
            rest += "" if value == default else f", {key}={argument_text(value, role, writer)}"
        else:
            rest += writer.number(value, role, key, default)
    return f"nn.{kind}({', '.join(positional)}{rest})".replace("(, ", "(", 1)
