"""Folds batch norms into the convolutions and linear layers before them.

Meant for a network that only runs inference, such as the teacher: in eval mode a batch norm scales
and shifts each channel by constants, which the preceding weights can absorb. Each folded call gets
weights of its own, so weights shared with other calls are unchanged there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from fitcompress.graph.program import (
    WEIGHT_ARGUMENTS,
    Program,
    clone,
    named_arguments,
    operation,
    output_nodes,
    prune,
)
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["Folded", "fold_norms"]


@dataclass(frozen=True)
class Folded:
    """A program without the batch norms that could be folded."""

    program: Program
    num_folded: int
    refused: Mapping[str, str]
    """By node name: why each remaining batch norm was not folded."""


def fold_norms(program: Program, kept: Collection[str] = ()) -> Folded:
    """The same function in eval mode, up to rounding, with fewer calls. Nothing is modified.

    kept: names of nodes whose values must not change, such as hints; outputs never do.
    """
    folded = clone(program)
    shapes = propagate_shapes(program)
    wanted = {*kept, *(node.name for node in output_nodes(folded.graph))}
    refused: dict[str, str] = {}
    num_folded = 0
    for norm in [node for node in folded.graph.nodes if operation(node) == "batch_norm"]:
        reason = _obstacle(norm, folded.tensors, wanted, shapes)
        if reason:
            refused[norm.name] = reason
        else:
            _fold(norm, folded)
            num_folded += 1
    return Folded(prune(folded), num_folded, refused)


_MAPS = ("linear", *(f"conv{rank}d" for rank in (1, 2, 3)))
_TRANSPOSED = tuple(f"conv_transpose{rank}d" for rank in (1, 2, 3))


def _obstacle(
    norm: Node,
    tensors: Mapping[str, Tensor],
    wanted: Collection[str],
    shapes: Mapping[str, Shape],
) -> str:
    """Why a batch norm cannot be folded; empty if it can."""
    given = named_arguments(norm)
    source = given["input"]
    if operation(source) not in (*_MAPS, *_TRANSPOSED):
        return "no convolution or linear layer precedes it"
    if given["training"] or given["running_mean"] is None:
        return "it normalizes by batch statistics"
    if len(source.users) > 1 or source.name in wanted:
        return f"the value of '{source.name}' is also used without it"
    if operation(source) == "linear" and len(shapes[source.name]) != 2:
        return "its channels are not the outputs of the linear layer"
    if operation(source) in _TRANSPOSED and named_arguments(source)["groups"] != 1:
        return "the transposed convolution before it has groups"
    constants = [node for node in (*source.args[1:3], *_affine(norm)) if isinstance(node, Node)]
    if not all(node.op == "get_attr" and str(node.target) in tensors for node in constants):
        return "its weights, or those of the layer before it, are computed"
    return ""


def _affine(norm: Node) -> tuple[Node | None, ...]:
    given = named_arguments(norm)
    return tuple(given[name] for name in WEIGHT_ARGUMENTS)


def _fold(norm: Node, program: Program) -> None:
    """Turns the batch norm's node into a copy of the preceding call with scaled weights."""
    graph, tensors = program.graph, program.tensors
    source = named_arguments(norm)["input"]
    scale, shift = _scale_and_shift(norm, tensors)
    weight = tensors[str(source.args[1].target)]
    bias = source.args[2] if len(source.args) > 2 else None
    old_bias = 0.0 if bias is None else tensors[str(bias.target)].double()
    channel_dim = 1 if operation(source) in _TRANSPOSED else 0
    shape = [-1 if dim == channel_dim else 1 for dim in range(weight.dim())]
    path = f"{str(source.args[1].target).removesuffix('.weight')}_{norm.name}"
    new = {
        f"{path}.weight": (weight.double() * scale.view(shape)).to(weight.dtype),
        f"{path}.bias": (old_bias * scale + shift).to(weight.dtype),
    }
    with graph.inserting_before(norm):
        nodes = [graph.create_node("get_attr", name) for name in new]
    for node in nodes:
        node.meta["owner"] = path
    tensors.update(new)
    norm.target, norm.kwargs = source.target, source.kwargs
    norm.args = (source.args[0], *nodes, *source.args[3:])


def _scale_and_shift(norm: Node, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The float64 constants a, b with norm(x) = a x + b in each channel."""
    gamma, beta, mean, variance = (
        None if node is None else tensors[str(node.target)].double() for node in _affine(norm)
    )
    assert mean is not None and variance is not None, norm
    scale = torch.rsqrt(variance + named_arguments(norm)["eps"])
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if beta is None else beta - mean * scale
    return scale, shift
