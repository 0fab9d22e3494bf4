"""Thins a program: chooses new sizes of its free atoms and rewrites it to them.

Sizes are planned before any tensor exists. Rewriting is mechanical: each tensor gets the sizes of
its axes and each bound literal the size of its axis.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import gcd, isclose, prod
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.errors import PlanError
from fitcompress.formatting import first_line
from fitcompress.graph.analysis.costs import COUNTED_BATCH
from fitcompress.graph.axes.algebra import Atom, Axis, Factor
from fitcompress.graph.axes.builder import Binding
from fitcompress.graph.axes.trace import STRUCTURAL, AxisTrace, free_weight_atoms
from fitcompress.graph.program import Program, clone, prune
from fitcompress.graph.shapes import output_shapes

__all__ = [
    "KEPT",
    "FrozenPlace",
    "Thinning",
    "frozen_places",
    "plan_sizes",
    "round_width",
    "thin_program",
    "verify_program",
]

_CLOSE_ENOUGH = (0.7, 1.4)
"""Range of the achieved over the requested share of heads or groups; outside of it, their number is
kept and their width is thinned.
"""
KEPT = "the other factor of a product is reduced (the number of groups or heads, or their width)"
"""Reason of an axis that could be thinned but is kept."""
_MUCH_LESS = 0.9
"""Thinning the width of groups is preferred to thinning their number if it leaves less than this
share of the parameters: a weight has the width of a group twice, the number of groups once.
"""


def round_width(size: int, width_mult: float, unit: int = 1) -> int:
    """A count near `size * width_mult` such that `count * unit` is a round number of channels.

    It is the nearest multiple of 8 if that changes it by at most a tenth, otherwise of 4, 2 or 1:
    odd widths are not faster.

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
    """New sizes of the free atoms.

    In a product one factor is thinned and the others are kept. Heads are thinned before head width,
    and groups before group width, unless rounding their small number misses the share by far or
    thinning their width leaves far fewer parameters.
    """
    return Thinning(trace).sizes(width_mult)


def _products(trace: AxisTrace) -> Iterator[Axis]:
    """All products among the weights' axes, those of several factors first.

    The order matters: products of several factors decide which factor is thinned.
    """
    seen: dict[Axis, None] = {}
    for axes in trace.weights.values():
        for axis in axes:
            seen.update(dict.fromkeys(trace.algebra.products(axis)))
    yield from (product for product in seen if len(product) > 1)
    yield from (product for product in seen if len(product) == 1)


class Thinning:
    """The relations between atoms of the weights' axes; computed once, used for any width."""

    def __init__(self, trace: AxisTrace) -> None:
        self.trace = trace
        self.free = free_weight_atoms(trace)
        self.products = list(_products(trace))
        self.neighbors: dict[Factor, set[Atom]] = {}
        for product in self.products:
            for factor in product:
                others = (other for other in product if other is not factor)
                self.neighbors.setdefault(factor, set()).update(*map(self.free_atoms, others))
        self.tensors_with: dict[Atom, dict[str, None]] = {}
        for name, axes in trace.weights.items():
            for atom in (atom for axis in axes for atom in trace.algebra.atoms(axis)):
                self.tensors_with.setdefault(atom, {})[name] = None

    def free_atoms(self, factor: Factor) -> set[Atom]:
        return set(self.trace.algebra.atoms((factor,))) & self.free

    def sizes(self, width_mult: float) -> dict[Atom, int]:
        """See `plan_sizes`."""
        if width_mult == 1:
            return {}
        choice = _Choice(self, width_mult)
        for product in self.products:
            choice.settle(product)
        return {atom: size for atom, size in choice.sizes.items() if atom not in choice.held}


class _Choice:
    """Decides product by product which atoms are thinned."""

    def __init__(self, thinning: Thinning, width_mult: float) -> None:
        self.thinning, self.trace, self.width_mult = thinning, thinning.trace, width_mult
        self.held: set[Atom] = set()
        self.sizes: dict[Atom, int] = {}

    def settle(self, product: Axis) -> None:
        """Chooses the factor of the product that is thinned and keeps the others."""
        chosen = self._factor_to_scale(product)
        for factor in product:
            if factor is not chosen:
                self.held.update(self.thinning.free_atoms(factor))
        if isinstance(chosen, Atom) and chosen not in self.sizes and chosen in self.thinning.free:
            unit = self.trace.algebra.size(product) // chosen.size
            self.sizes[chosen] = round_width(chosen.size, self.width_mult, unit)

    def _factor_to_scale(self, product: Axis) -> Factor | None:
        eligible = [factor for factor in product if self.thinning.free_atoms(factor) - self.held]
        already = [factor for factor in eligible if factor in self.sizes]
        if already or not eligible:
            return already[0] if already else None
        close = [f for f in eligible if _divides_well(f, self.width_mult)] or eligible[-1:]
        is_outer = len(close) > 1 and isinstance(close[0], Atom)
        return close[1] if is_outer and self._should_stay(close[0]) else close[0]

    def _should_stay(self, factor: Factor) -> bool:
        """Whether thinning the factor's neighbors leaves far fewer parameters than thinning it."""
        alone, neighbors = self.thinning.free_atoms(factor), self.thinning.neighbors[factor]
        atoms = (*alone, *neighbors)
        touched = dict.fromkeys(name for atom in atoms for name in self.thinning.tensors_with[atom])
        return self._params(touched, neighbors) < _MUCH_LESS * self._params(touched, alone)

    def _params(self, names: Iterable[str], scaled: Iterable[Atom]) -> int:
        """Number of elements of the named tensors if the atoms are scaled."""
        axes, resize = self.trace.weights, self.trace.algebra.resize
        sizes = {atom: max(1, round(atom.size * self.width_mult)) for atom in scaled}
        return sum(prod(resize(axis, sizes) for axis in axes[name]) for name in names)


def _divides_well(factor: Factor, width_mult: float) -> bool:
    if not isinstance(factor, Atom):
        return True
    share = max(1, round(factor.size * width_mult)) / factor.size
    return _CLOSE_ENOUGH[0] <= share / width_mult <= _CLOSE_ENOUGH[1]


def thin_program(program: Program, trace: AxisTrace, sizes: Mapping[Atom, int]) -> Program:
    """The program with the new sizes of the atoms, and its tensors on the meta device.

    Sizes that contain the batch become -1 where the operation can infer them, so that the result
    runs at any batch size.
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
    """Inserts a node for `count` times the batch size before `node`."""
    graph = node.graph
    source = next(other for other in graph.nodes if other.op == "placeholder")
    with graph.inserting_before(node):
        batch = graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
        return graph.call_function(operator.mul, (batch, count))


def _rewrite_constant(
    node: Node, argument: str, axes: tuple[Axis, ...], trace: AxisTrace, sizes: Mapping[Atom, int]
) -> None:
    """Rescales a float that is a power of an axis's old size, such as 1/sqrt(d) in attention."""
    value = _literal(node, argument, None)
    for axis in reversed(axes):
        old, new = trace.algebra.size(axis), trace.algebra.resize(axis, sizes)
        for power in (-0.5, -1.0, -0.25, 0.5):
            if isclose(value, old**power, rel_tol=1e-6):
                _set_literal(node, argument, None, value * (new / old) ** power)
                return


def _position(node: Node, argument: str) -> int | None:
    """The position of the argument in the call; None if it is passed by keyword."""
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
    """Checks that the program runs and has the reference's output shapes.

    The batch size differs from those used for planning.

    Raises:
        PlanError: it does not.
    """
    try:
        found = output_shapes(program, COUNTED_BATCH)
    except (RuntimeError, ValueError, TypeError) as error:
        cause = first_line(error)
        raise PlanError(
            f"verifying the planned student: it does not run: {cause}",
            code="planned-student-fails",
        ) from error
    expected = output_shapes(reference, COUNTED_BATCH)
    if found != expected:
        raise PlanError(
            f"verifying the planned student: expected outputs of shape {expected}, got {found}",
            code="planned-outputs-mismatch",
            expected=[list(shape) for shape in expected],
            got=[list(shape) for shape in found],
        )


@dataclass(frozen=True)
class FrozenPlace:
    """Sizes that cannot be thinned for one reason, and the weights that have them."""

    reason: str
    sizes: tuple[int, ...]
    tensors: tuple[str, ...]


def frozen_places(
    trace: AxisTrace, trainable: frozenset[str], sizes: Mapping[Atom, int]
) -> tuple[FrozenPlace, ...]:
    """The reasons, other than inputs and outputs, why trained tensors keep the teacher's sizes.

    Those with the most tensors come first. sizes: the result of `plan_sizes`.
    """
    found: dict[str, dict[str, set[Atom]]] = {}
    for name in filter(trainable.__contains__, trace.weights):
        for axis in trace.weights[name]:
            atoms = list(trace.algebra.atoms(axis))
            kept = KEPT if sizes and sizes.keys().isdisjoint(atoms) else ""
            for atom in atoms:
                reason = trace.algebra.frozen_reason(atom) or kept
                if reason and reason not in STRUCTURAL:
                    found.setdefault(reason, {}).setdefault(name, set()).add(atom)
    places = [
        FrozenPlace(
            reason, tuple(sorted({atom.size for atoms in by.values() for atom in atoms})), tuple(by)
        )
        for reason, by in found.items()
    ]
    return tuple(sorted(places, key=lambda place: -len(place.tensors)))
