"""The shapes of a program's values, found without memory or arithmetic. Layer: graph (torch)."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.node import Node, Target, map_arg

from fitcompress.graph.program import ACTIVATIONS, Program

__all__ = ["Shape", "call_layout", "makes_tensors", "propagate_shapes"]

Shape = Any
"""`tuple[int, ...]` of a tensor, a number for arithmetic on sizes, a tuple of these for a call with
several results.
"""


def propagate_shapes(program: Program, batch_size: int = 2) -> dict[str, Shape]:
    """The shape of every node's value by node name, found on the meta device: no memory, no
    arithmetic. The answers for the last programs are remembered, by what they say.

    Raises:
        RuntimeError: a call does not fit the shapes that it gets (as torch words it).
    """
    key = (_wording(program), batch_size)
    if key not in _ANSWERS:
        _ANSWERS[key] = _run_for_shapes(program, batch_size)
        if len(_ANSWERS) > _MOST_ANSWERS:
            _ANSWERS.popitem(last=False)
    return dict(_ANSWERS[key])


_ANSWERS: OrderedDict[tuple[str, int], dict[str, Shape]] = OrderedDict()
_MOST_ANSWERS = 16
"""Planning asks for the shapes of a handful of programs some thirty times."""


def _wording(program: Program) -> str:
    """All that the shapes depend on, as a digest."""
    digest = hashlib.sha256(repr(program.inputs).encode())
    for node in program.graph.nodes:
        digest.update(f"{node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    for name, value in program.tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
    return digest.hexdigest()


def _run_for_shapes(program: Program, batch_size: int) -> dict[str, Shape]:
    """Call by call without fx's interpreter, whose bookkeeping takes longer than the calls."""
    inputs = iter(program.inputs)
    values: dict[Node, Any] = {}
    with torch.no_grad():
        for node in program.graph.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            match node.op:
                case "placeholder":
                    info = next(inputs)
                    shape = (batch_size, *info.shape)
                    values[node] = torch.empty(shape, dtype=info.dtype, device="meta")
                case "get_attr":
                    values[node] = program.tensors[str(node.target)].detach().to("meta")
                case "output":
                    values[node] = args[0]
                case _:
                    values[node] = _call(node.target, args, kwargs)
    return {node.name: _shape_of(value) for node, value in values.items()}


def _call(target: Target, args: Any, kwargs: Any) -> Any:
    if makes_tensors(target):
        kwargs = {**kwargs, "device": torch.device("meta")}
    if _keeps_layout(target, args):
        return args[0]
    key = (target, call_layout(args), call_layout(kwargs))
    if key not in _CALLS:
        _CALLS[key] = target(*args, **kwargs)  # type: ignore[operator]
        if len(_CALLS) > _MOST_CALLS:
            _CALLS.popitem(last=False)
    return _CALLS[key]


def _keeps_layout(target: Target, args: Any) -> bool:
    """Whether a call surely runs and gives what lies in memory as its first argument. Torch, asked
    for that, takes ten to twenty times as long as for a convolution.
    """
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.is_contiguous()):
        return False
    name = target._schema.name.removeprefix("aten::") if isinstance(target, OpOverload) else ""
    if name == "batch_norm":
        shapes = {tuple(of_channels.shape) for of_channels in args[1:5] if of_channels is not None}
        return x.dim() > 1 and shapes <= {x.shape[1:2]}
    return name in ACTIVATIONS


_CALLS: OrderedDict[Any, Any] = OrderedDict()
_MOST_CALLS = 20_000
"""Blocks repeat, and a program is run at several batch sizes: most calls have been answered."""


def call_layout(value: Any) -> Any:
    """All that a call on the meta device can see of its arguments, to look its answer up by."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(call_layout, value))
    if isinstance(value, dict):
        return tuple((name, call_layout(item)) for name, item in value.items())
    return type(value), value


@functools.cache
def makes_tensors(target: Target) -> bool:
    """Whether the call makes a tensor from numbers alone, hence on a device of its own choice."""
    if not isinstance(target, OpOverload):
        return False
    arguments = target._schema.arguments
    takes_device = any(argument.name == "device" for argument in arguments)
    return takes_device and not any("Tensor" in str(argument.type) for argument in arguments)


def _shape_of(value: Any) -> Shape:
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, (list, tuple)):
        return tuple(_shape_of(item) for item in value)
    return value
