"""Thinner: new sizes for the atoms that are free, and the program rewritten to them. Layer: graph.

Sizes are planned as numbers before any tensor exists; the rewriting is then mechanical: every
tensor gets the sizes of its axes and every bound literal the size of its axis.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import gcd, isclose
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.errors import PlanError
from fitcompress.graph.axes import Atom, Axis, Factor
from fitcompress.graph.program import Program, clone, output_nodes, propagate_shapes, prune
from fitcompress.graph.rules import Binding
from fitcompress.graph.trace import STRUCTURAL, AxisTrace, free_weight_atoms

__all__ = [
    "FrozenPlace",
    "frozen_places",
    "plan_sizes",
    "round_width",
    "thin_program",
    "verify_program",
]

_CLOSE_ENOUGH = (0.7, 1.4)
"""How far the achieved share may be from the asked one before heads or groups are left whole and
their insides thinned."""


def round_width(size: int, width_mult: float, unit: int = 1) -> int:
    """A count near `size * width_mult` so that `count * unit` is a friendly number of channels.

    The nearest multiple of 8 when that moves it by at most a tenth, else of 4, 2, 1: odd widths are
    not faster.

    >>> round_width(64, 0.3), round_width(32, 0.3), round_width(3, 0.3, 64)
    (20, 10, 1)
    """
    target = size * width_mult
    for multiple in (8, 4, 2, 1):
        step = multiple // gcd(multiple, unit)
        count = max(step, round(target / step) * step)
        if count <= size and abs(count - target) <= 0.1 * target:
            return count
    return max(1, round(target))


def plan_sizes(trace: AxisTrace, width_mult: float) -> dict[Atom, int]:
    """New sizes of the free atoms. In a product one factor scales and the others stay: heads before
    head width, groups before group width, unless so few of them are left that the share would be
    missed by far.
    """
    if width_mult == 1:
        return {}
    free = free_weight_atoms(trace)
    held: set[Atom] = set()
    sizes: dict[Atom, int] = {}
    for product in _products(trace):
        chosen = _choose_factor(trace, product, free - held, set(sizes), width_mult)
        for factor in product:
            if factor is not chosen:
                held.update(set(trace.algebra.atoms((factor,))) & free)
        if isinstance(chosen, Atom) and chosen not in sizes and chosen in free - held:
            unit = trace.algebra.size(product) // chosen.size
            sizes[chosen] = round_width(chosen.size, width_mult, unit)
    return {atom: size for atom, size in sizes.items() if atom not in held}


def _products(trace: AxisTrace) -> Iterator[Axis]:
    """All products among the weights' axes, those of several factors first, so that they decide who
    scales."""
    seen: dict[Axis, None] = {}
    for axes in trace.weights.values():
        for axis in axes:
            seen.update(dict.fromkeys(trace.algebra.products(axis)))
    yield from (product for product in seen if len(product) > 1)
    yield from (product for product in seen if len(product) == 1)


def _choose_factor(
    trace: AxisTrace, product: Axis, free: set[Atom], scaled: set[Atom], width_mult: float
) -> Factor | None:
    """The factor of the product that gets thinner."""
    eligible = [f for f in product if any(atom in free for atom in trace.algebra.atoms((f,)))]
    already = [factor for factor in eligible if factor in scaled]
    if already or not eligible:
        return already[0] if already else None
    return next((f for f in eligible[:-1] if _divides_well(f, width_mult)), eligible[-1])


def _divides_well(factor: Factor, width_mult: float) -> bool:
    if not isinstance(factor, Atom):
        return True
    share = max(1, round(factor.size * width_mult)) / factor.size
    return _CLOSE_ENOUGH[0] <= share / width_mult <= _CLOSE_ENOUGH[1]


def thin_program(program: Program, trace: AxisTrace, sizes: Mapping[Atom, int]) -> Program:
    """The program with the atoms at their new sizes, its tensors on the meta device. The argument
    is not modified.

    Sizes that hold the batch become -1 where the operation infers them, so that the result takes
    every batch.
    """
    thin = clone(program)
    nodes = {node.name: node for node in thin.graph.nodes}
    for binding in trace.bindings:
        _rewrite_size(nodes[binding.node], binding, trace, sizes)
    for constant in trace.constants:
        _rewrite_constant(nodes[constant.node], constant.argument, constant.axes, trace, sizes)
    tensors = {
        name: torch.empty(
            [trace.algebra.resize(axis, sizes) for axis in trace.weights[name]],
            dtype=value.dtype,
            device="meta",
        )
        for name, value in program.tensors.items()
        if name in trace.weights
    }
    return prune(Program(thin.graph, tensors, program.trainable, program.inputs))


def _rewrite_size(
    node: Node, binding: Binding, trace: AxisTrace, sizes: Mapping[Atom, int]
) -> None:
    current = _literal(node, binding.argument, binding.index)
    size = trace.algebra.resize(binding.axis, sizes)
    if trace.is_batch(binding.axis):
        if binding.is_inferable:
            _set_literal(node, binding.argument, binding.index, -1)
        elif isinstance(current, Node) and size != trace.algebra.size(binding.axis):
            count = size // trace.algebra.size(trace.batch)
            _set_literal(node, binding.argument, binding.index, _batch_times(node, count))
    elif isinstance(current, int) or _changed(binding.axis, trace, sizes):
        _set_literal(node, binding.argument, binding.index, size)


def _changed(axis: Axis, trace: AxisTrace, sizes: Mapping[Atom, int]) -> bool:
    return trace.algebra.resize(axis, sizes) != trace.algebra.size(axis)


def _batch_times(node: Node, count: int) -> Node:
    """A node for `count` times the batch size, in front of `node`."""
    graph = node.graph
    source = next(other for other in graph.nodes if other.op == "placeholder")
    with graph.inserting_before(node):
        batch = graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
        return graph.call_function(operator.mul, (batch, count))


def _rewrite_constant(
    node: Node, argument: str, axes: tuple[Axis, ...], trace: AxisTrace, sizes: Mapping[Atom, int]
) -> None:
    """A float that is a power of an axis's old size becomes the same power of its new one
    (1/sqrt(d) in attention)."""
    value = _literal(node, argument, None)
    for axis in reversed(axes):
        old, new = trace.algebra.size(axis), trace.algebra.resize(axis, sizes)
        for power in (-0.5, -1.0, -0.25, 0.5):
            if isclose(value, old**power, rel_tol=1e-6):
                _set_literal(node, argument, None, value * (new / old) ** power)
                return


def _position(node: Node, argument: str) -> int | None:
    """Where the argument stands among the positional ones of the call; None when it is given by
    name."""
    assert isinstance(node.target, OpOverload)
    names = [schema.name for schema in node.target._schema.arguments]
    place = names.index(argument)
    return place if place < len(node.args) else None


def _literal(node: Node, argument: str, index: int | None) -> Any:
    place = _position(node, argument)
    value: Any = node.kwargs.get(argument) if place is None else node.args[place]
    return value if index is None or value is None else value[index]


def _set_literal(node: Node, argument: str, index: int | None, value: Any) -> None:
    place = _position(node, argument)
    if index is not None:
        whole = list(_literal(node, argument, None))
        whole[index] = value
        value = whole
    if place is None:
        node.kwargs = {**node.kwargs, argument: value}
    else:
        node.update_arg(place, value)


def verify_program(program: Program, reference: Program) -> None:
    """Check that the program runs at two batch sizes and gives outputs of the reference's shapes.

    Raises:
        PlanError: it does not.
    """
    for batch_size in (2, 3):
        try:
            found = _output_shapes(program, batch_size)
        except (RuntimeError, ValueError, TypeError) as error:
            cause = str(error).splitlines()[0]
            raise PlanError(
                f"the planned student does not run at batch size {batch_size}: {cause}"
            ) from error
        expected = _output_shapes(reference, batch_size)
        if found != expected:
            raise PlanError(
                f"the planned student gives outputs of shape {found}, the teacher {expected}"
            )


def _output_shapes(program: Program, batch_size: int) -> list[Any]:
    shapes = propagate_shapes(program, batch_size)
    return [shapes[node.name] for node in output_nodes(program.graph)]


@dataclass(frozen=True)
class FrozenPlace:
    """Sizes that could not be thinned for one reason, and the weights that have them."""

    reason: str
    sizes: tuple[int, ...]
    tensors: tuple[str, ...]


def frozen_places(trace: AxisTrace, trainable: frozenset[str]) -> tuple[FrozenPlace, ...]:
    """Where trained tensors stay as wide as the teacher's for a reason not in the task, most
    tensors first."""
    found: dict[str, dict[str, set[Atom]]] = {}
    for name, axes in trace.weights.items():
        if name not in trainable:
            continue
        for atom in (atom for axis in axes for atom in trace.algebra.atoms(axis)):
            reason = trace.algebra.frozen_reason(atom)
            if reason and reason not in STRUCTURAL:
                found.setdefault(reason, {}).setdefault(name, set()).add(atom)
    places = [
        FrozenPlace(
            reason, tuple(sorted({atom.size for atoms in by.values() for atom in atoms})), tuple(by)
        )
        for reason, by in found.items()
    ]
    return tuple(sorted(places, key=lambda place: -len(place.tensors)))
