"""Costs of a program as a function of its atoms' sizes, and the largest sizes within limits.

No tensor is created and no graph is rewritten: a network of a few hundred layers takes
milliseconds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from fitcompress.graph.analysis.costs import COUNTED_BATCH, is_contraction, measure_costs, node_macs
from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra
from fitcompress.graph.axes.trace import AxisTrace
from fitcompress.graph.program import Program
from fitcompress.graph.shapes import Shape
from fitcompress.student.width import Thinning

__all__ = [
    "CLOSE",
    "MIN_WIDTH_MULT",
    "CostTable",
    "Costing",
    "Fit",
    "Limits",
    "Tally",
    "largest_sizes",
    "tally_of",
]

CLOSE = 0.97
"""Share of a limit from which a student counts as filling it."""
_FULL = 0.995
"""Share at which the search stops."""
MIN_WIDTH_MULT = 0.01
"""Width multiplier of the smallest student."""
_NEAR = 1.005
"""Ratio of two widths between which no others are tried."""
_WIDER = (1.05, 1.1, 1.2, 1.4, 1.8, 2.5)
"""Multiples of the uniform width to which single axes may be widened."""

Sizes = Mapping[Atom, int]


class Tally(NamedTuple):
    """Costs of a student."""

    params: int
    """Trained parameters."""
    macs: int
    """Multiply-adds for one sample."""
    size: int
    """Bytes of all tensors, with floating-point tensors in float32."""


def tally_of(program: Program) -> Tally:
    """Costs of a program."""
    sizes = {name: value.numel() * _item_bytes(value) for name, value in program.tensors.items()}
    costs = measure_costs(program)
    return Tally(costs.params, costs.macs, sum(sizes.values()))


def _item_bytes(value: Tensor) -> int:
    return 4 if value.is_floating_point() else value.element_size()


@dataclass(frozen=True)
class Limits:
    """Maximum costs of a student; None is no limit."""

    params: float | None = None
    macs: float | None = None
    size: float | None = None

    def share(self, tally: Tally) -> float:
        """The largest share of a limit that is used; above 1 if a limit is exceeded."""
        limits = (self.params, self.macs, self.size)
        pairs = zip(tally, limits, strict=True)
        return max((cost / limit for cost, limit in pairs if limit is not None), default=0.0)


class CostTable:
    """Costs of a program as sums of terms, each of which depends on the lengths of a few axes."""

    def __init__(self, program: Program, trace: AxisTrace) -> None:
        self.algebra = trace.algebra
        self.batch = dict.fromkeys(self.algebra.atoms(trace.batch), COUNTED_BATCH)
        places = _Places(self.algebra)
        self.terms = [*_tensor_terms(program, trace, places), *_call_terms(program, trace, places)]
        self.axes = list(places)
        self.axes_with = _inverse(map(self.algebra.atoms, self.axes))
        self.terms_with = _inverse(term.places for term in self.terms)

    def at(self, sizes: Sizes) -> Costing:
        """The costs with these sizes of atoms; other atoms keep their size."""
        known = {**sizes, **self.batch}
        lengths = [self.algebra.resize(axis, known) for axis in self.axes]
        costs = [term.cost(lengths) for term in self.terms]
        return Costing(self, dict(sizes), lengths, costs, _sum(costs))


@dataclass(frozen=True)
class Costing:
    """Costs of a program at given sizes of its atoms."""

    table: CostTable
    sizes: dict[Atom, int]
    lengths: list[int]
    """One per axis of the table."""
    costs: list[Tally]
    """One per term of the table."""
    total: Tally
    """Costs for `COUNTED_BATCH` samples."""

    @property
    def tally(self) -> Tally:
        """The costs for one sample."""
        return self.total._replace(macs=self.total.macs // COUNTED_BATCH)

    def resized(self, atom: Atom, size: int) -> Costing:
        """The costs with another size of one atom."""
        table, lengths, costs = self.table, list(self.lengths), list(self.costs)
        sizes = {**self.sizes, atom: size}
        known = {**sizes, **table.batch}
        axes = table.axes_with.get(atom, ())
        for place in axes:
            lengths[place] = table.algebra.resize(table.axes[place], known)
        changed = {number for place in axes for number in table.terms_with[place]}
        for number in changed:
            costs[number] = table.terms[number].cost(lengths)
        before, after = (_sum(own[number] for number in changed) for own in (self.costs, costs))
        total = map(operator.add, self.total, map(operator.sub, after, before))
        return Costing(table, sizes, lengths, costs, Tally(*total))


def _inverse(groups: Iterable[Iterable[Any]]) -> dict[Any, list[int]]:
    """The indices of the groups that contain each item."""
    found: dict[Any, list[int]] = {}
    for index, items in enumerate(groups):
        for item in dict.fromkeys(items):
            found.setdefault(item, []).append(index)
    return found


class _Places(dict[Axis, int]):
    """Numbers distinct axes in order of appearance."""

    def __init__(self, algebra: AxisAlgebra) -> None:
        self.algebra = algebra

    def of(self, axis: Axis) -> int:
        return self.setdefault(self.algebra.normal(axis), len(self))


class _Term(NamedTuple):
    places: Sequence[int]
    """Axes whose lengths it depends on."""
    cost: Callable[[Sequence[int]], Tally]
    """Its costs at given lengths of all axes."""


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(Tally(0, 0, 0), *tallies, strict=True)))


def _tensor_terms(program: Program, trace: AxisTrace, places: _Places) -> list[_Term]:
    """A term for all tensors that have the same axes: their parameters and bytes."""
    of_one: dict[tuple[int, ...], Tally] = {}
    for name, value in program.tensors.items():
        if name in trace.weights:
            axes = tuple(map(places.of, trace.weights[name]))
            own = Tally(int(name in program.trainable), 0, _item_bytes(value))
            of_one[axes] = _sum((of_one.get(axes, Tally(0, 0, 0)), own))
    return [_tensor_term(axes, tally) for axes, tally in of_one.items()]


def _tensor_term(axes: Sequence[int], of_one: Tally) -> _Term:
    """of_one: costs of one element of each tensor."""

    def cost(lengths: Sequence[int]) -> Tally:
        numel = prod(lengths[place] for place in axes)
        return Tally(numel * of_one.params, 0, numel * of_one.size)

    return _Term(axes, cost)


def _call_terms(program: Program, trace: AxisTrace, places: _Places) -> list[_Term]:
    """A term for each contraction: its multiply-adds."""
    contractions = filter(is_contraction, program.graph.nodes)
    return [_call_term(node, trace, places) for node in contractions]


def _call_term(node: Node, trace: AxisTrace, places: _Places) -> _Term:
    near = {source.name: trace.values[source.name] for source in (node, *node.all_input_nodes)}
    values = {name: _placed(value, places) for name, value in near.items()}

    def cost(lengths: Sequence[int]) -> Tally:
        shapes = {name: _at(lengths, value) for name, value in values.items()}
        return Tally(0, node_macs(node, shapes), 0)

    return _Term([place for place in tree_leaves(values) if place is not None], cost)


def _placed(value: Any, places: _Places) -> Any:
    """The value with each axis replaced by its number."""
    if isinstance(value, tuple):
        return places.of(value)
    return [_placed(part, places) for part in value] if isinstance(value, list) else None


def _at(lengths: Sequence[int], placed: Any) -> Shape:
    """The shape of a value at given lengths of all axes."""
    if isinstance(placed, int):
        return lengths[placed]
    return tuple(_at(lengths, part) for part in placed) if placed is not None else None


@dataclass(frozen=True)
class Fit:
    """The largest sizes found within limits."""

    sizes: dict[Atom, int]
    width_mult: float
    """The uniform width before single axes were widened."""
    tally: Tally
    share: float
    """The largest share of a limit that is used; above 1 if even the smallest sizes exceed it."""
    above: Tally | None
    """Costs of the smallest student found to exceed the limits; None if there is none."""


def largest_sizes(trace: AxisTrace, table: CostTable, limits: Limits) -> Fit:
    """The widest uniform sizes within the limits, with single axes widened as far as possible.

    If none are within the limits, the narrowest sizes.
    """
    thinning = Thinning(trace)
    low, high = MIN_WIDTH_MULT, 1.0
    fitting, above = (table.at(thinning.sizes(width)) for width in (low, high))
    if limits.share(above.tally) <= 1:
        return _fit(above, high, limits, None)
    if limits.share(fitting.tally) > 1:
        return _fit(fitting, low, limits, fitting.tally)
    while high > low * _NEAR and limits.share(fitting.tally) <= _FULL:
        middle = sqrt(low * high)
        costing = table.at(thinning.sizes(middle))
        if limits.share(costing.tally) <= 1:
            low, fitting = middle, costing
        else:
            high, above = middle, costing
    wider = [above.sizes, *(thinning.sizes(min(1.0, low * factor)) for factor in _WIDER)]
    return _filled(fitting, low, above.tally, limits, wider)


def _fit(costing: Costing, width: float, limits: Limits, above: Tally | None) -> Fit:
    return Fit(costing.sizes, width, costing.tally, limits.share(costing.tally), above)


def _filled(
    costing: Costing, width: float, above: Tally, limits: Limits, wider: Sequence[Sizes]
) -> Fit:
    """Widens single axes to their sizes in wider plans, the costliest first."""
    for plan in wider:
        shares = {
            atom: limits.share(costing.resized(atom, size).tally)
            for atom, size in plan.items()
            if atom in costing.sizes and size > costing.sizes[atom]
        }
        for atom in sorted(shares, key=lambda atom: -shares[atom]):
            if limits.share(costing.tally) > _FULL:
                return _fit(costing, width, limits, above)
            grown = costing.resized(atom, plan[atom])
            if limits.share(grown.tally) <= 1:
                costing = grown
            elif limits.share(grown.tally) < limits.share(above):
                above = grown.tally
    return _fit(costing, width, limits, above)
