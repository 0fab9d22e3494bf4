"""Writes the `torch.nn` module that computes a call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from fitcompress.exporters.python.code import Code, code, joined, number
from fitcompress.exporters.python.expressions import given_arguments, literal_text, short_form
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.program import named_arguments, operation

__all__ = ["has_module", "leaf_code", "module_code"]

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
"""Calls without weights; their arguments have the same names as the module's."""


def has_module(node: Node) -> bool:
    """Whether `module_code` can write the call."""
    if operation(node) not in _MODULES or len(node.all_input_nodes) != 1:
        return False
    return all(not isinstance(value, Node) for value in node.args[1:])


def module_code(node: Node) -> Code:
    """The module for a call without weights."""
    given = given_arguments(node) if operation(node) != "flatten" else named_arguments(node)
    options = {k: v for k, v in given.items() if k not in ("self", "input", "train")}
    return _constructor(_MODULES[operation(node)], options, "")


def leaf_code(leaf: Leaf, dtype: torch.dtype) -> Code:
    """The module for a leaf.

    dtype: of its parameters.
    """
    options = dict(leaf.options)
    ending = "" if dtype is torch.float32 else f", dtype={dtype}"
    return _constructor(leaf.kind, options, leaf.path.rpartition(".")[2], ending)


def _constructor(kind: str, options: Mapping[str, Any], name: str, ending: str = "") -> Code:
    parameters = inspect.signature(getattr(nn, kind)).parameters
    positional: list[Code] = []
    by_keyword: list[str | Code] = []
    for key, given in options.items():
        value, role = short_form(key, given), f"{name}.{key}"
        if key == "normalized_shape" and len(value) == 1:
            (value,) = value
        default = parameters[key].default
        if default is inspect.Parameter.empty:
            positional.append(number(value, role))
        elif not isinstance(value, (bool, str)):
            by_keyword.append(number(value, role, key, default))
        elif value != default:
            by_keyword.append(f", {key}={literal_text(value)}")
    return code(f"nn.{kind}(", joined(", ", positional), *by_keyword, f"{ending})")
