"""The shapes of a program's values, computed on the meta device."""

from __future__ import annotations

import functools
import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx.node import Node, Target, map_arg

from fitcompress.graph.program import ACTIVATIONS, Program, output_nodes

__all__ = ["Shape", "call_layout", "makes_tensors", "output_shapes", "propagate_shapes"]

Shape = Any
"""`tuple[int, ...]` of a tensor, a number for arithmetic on sizes, a tuple of these for a call with
several results.
"""


def propagate_shapes(program: Program, batch_size: int = 2) -> dict[str, Shape]:
    """The shape of every node's value, by node name. Runs on the meta device, which takes neither
    memory nor arithmetic; the results for the last few programs are cached by content.

    Raises:
        RuntimeError: a call does not accept the shapes of its arguments (torch's message).
    """
    key = (_digest(program), batch_size)
    if key not in _PROGRAM_CACHE:
        _PROGRAM_CACHE[key] = _run_for_shapes(program, batch_size)
        if len(_PROGRAM_CACHE) > _MAX_CACHED_PROGRAMS:
            _PROGRAM_CACHE.popitem(last=False)
    return dict(_PROGRAM_CACHE[key])


def output_shapes(program: Program, batch_size: int = 2) -> list[tuple[int, ...]]:
    """The shapes of the program's outputs, batch included.

    Raises:
        RuntimeError: as `propagate_shapes`.
    """
    shapes = propagate_shapes(program, batch_size)
    return [shapes[node.name] for node in output_nodes(program.graph)]


_PROGRAM_CACHE: OrderedDict[tuple[str, int], dict[str, Shape]] = OrderedDict()
_MAX_CACHED_PROGRAMS = 16
"""Planning a student takes the shapes of a handful of programs some thirty times."""


def _digest(program: Program) -> str:
    """A digest of everything that the shapes depend on."""
    digest = hashlib.sha256(repr(program.inputs).encode())
    for node in program.graph.nodes:
        digest.update(f"{node.name} {node.target} {node.args} {node.kwargs}\n".encode())
    for name, value in program.tensors.items():
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
    return digest.hexdigest()


def _run_for_shapes(program: Program, batch_size: int) -> dict[str, Shape]:
    """Runs the calls in a loop: the bookkeeping of fx's interpreter takes longer than they do."""
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
    if key not in _CALL_CACHE:
        _CALL_CACHE[key] = target(*args, **kwargs)  # type: ignore[operator]
        if len(_CALL_CACHE) > _MAX_CACHED_CALLS:
            _CALL_CACHE.popitem(last=False)
    return _CALL_CACHE[key]


def _keeps_layout(target: Target, args: Any) -> bool:
    """Whether the result certainly has the shape and strides of the first argument. On the meta
    device such a call takes torch ten to twenty times as long as a convolution.
    """
    x = args[0] if args else None
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.is_contiguous()):
        return False
    name = target._schema.name.removeprefix("aten::") if isinstance(target, OpOverload) else ""
    if name == "batch_norm":
        shapes = {tuple(value.shape) for value in args[1:5] if value is not None}
        return x.dim() > 1 and shapes <= {x.shape[1:2]}
    return name in ACTIVATIONS


_CALL_CACHE: OrderedDict[Any, Any] = OrderedDict()
_MAX_CACHED_CALLS = 20_000
"""Blocks repeat and a program runs at several batch sizes, so most calls are in the cache."""


def call_layout(value: Any) -> Any:
    """Everything about the arguments that the result on the meta device depends on, as a key."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype
    if isinstance(value, (list, tuple)):
        return tuple(map(call_layout, value))
    if isinstance(value, dict):
        return tuple((name, call_layout(item)) for name, item in value.items())
    return type(value), value


@functools.cache
def makes_tensors(target: Target) -> bool:
    """Whether the call makes a tensor without taking one, so that its device is an argument."""
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
