"""Writes constants of one number into the calls that take them. Layer: graph.

An archive may hold a scale or a count as a tensor where eager code has a number. As a number it is
seen by the rules, which can recompute one that came from a size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from fitcompress.graph.program import Program, prune

__all__ = ["inline_numbers"]

aten = torch.ops.aten

_ARITHMETIC = {
    aten.add.Tensor: aten.add.Tensor,
    aten.sub.Tensor: aten.sub.Tensor,
    aten.mul.Tensor: aten.mul.Tensor,
    aten.div.Tensor: aten.div.Tensor,
    aten.pow.Tensor_Tensor: aten.pow.Tensor_Scalar,
}
"""Calls whose second operand may be a number, and what they are called then."""


def inline_numbers(program: Program) -> Program:
    """The same program with numbers for its constants of one element where torch takes numbers. The
    graph is edited in place.
    """
    for node in program.graph.nodes:
        if node.target in _ARITHMETIC and _is_float(node.args[0]):
            number = _number(program, node.args[1], most_dims=0)
            if number is not None:
                node.target = _ARITHMETIC[node.target]
                node.update_arg(1, number)
        elif node.target is aten.repeat_interleave.self_Tensor:
            _write_repeats(program, node)
    return prune(program)


def _number(program: Program, source: object, *, most_dims: int) -> float | int | None:
    """The value of a constant that is one real number."""
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    name, value = str(source.target), program.tensors[str(source.target)]
    is_literal = name.rpartition(".")[2].startswith("constant_")
    if not is_literal or value.numel() != 1 or value.ndim > most_dims or value.is_meta:
        return None
    return None if value.is_complex() or value.dtype is torch.bool else value.item()


def _write_repeats(program: Program, node: Node) -> None:
    """So many of each element: without the number, or how many that makes, shapes are unknown."""
    number = _number(program, node.args[1], most_dims=1)
    if number is not None:
        node.target = aten.repeat_interleave.self_int
        node.update_arg(1, int(number))


def _is_float(source: object) -> bool:
    """Whether it is a floating-point tensor, whose type no real number changes."""
    value = source.meta.get("val") if isinstance(source, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()
