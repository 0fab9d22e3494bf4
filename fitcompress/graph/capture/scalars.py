"""Replaces constants of one element by numbers in the calls that take them.

An archive may contain a scale or a count as a tensor where eager code has a number. Axis rules see
numbers only, and recompute those derived from a size.
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
"""Calls whose second operand may be a number, and their overload for a number."""


def inline_numbers(program: Program) -> Program:
    """The same program with numbers in place of constants of one element, where torch accepts
    numbers. Edits the graph in place.
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
    """The value of a constant that is a single real number, or None."""
    if not isinstance(source, Node) or source.op != "get_attr":
        return None
    name, value = str(source.target), program.tensors[str(source.target)]
    is_literal = name.rpartition(".")[2].startswith("constant_")
    if not is_literal or value.numel() != 1 or value.ndim > most_dims or value.is_meta:
        return None
    return None if value.is_complex() or value.dtype is torch.bool else value.item()


def _write_repeats(program: Program, node: Node) -> None:
    """Make the number of repeats a literal, without which the shape of the result is unknown."""
    number = _number(program, node.args[1], most_dims=1)
    if number is not None:
        node.target = aten.repeat_interleave.self_int
        node.update_arg(1, int(number))


def _is_float(source: object) -> bool:
    """Whether a value is a floating-point tensor: a real number does not change its dtype."""
    value = source.meta.get("val") if isinstance(source, Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()
