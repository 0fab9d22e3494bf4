"""What a program costs as a closed function of its atoms' sizes, and the largest sizes within
limits. Layer: graph.

No tensor is made and no graph is rewritten to answer: a network of some hundred layers takes
milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from torch import Tensor
from torch.fx import Node

from fitcompress.graph.axes import Atom, Axis, AxisAlgebra
from fitcompress.graph.costs import is_contraction, measure_costs, node_macs
from fitcompress.graph.program import Program, Shape
from fitcompress.graph.thin import Thinning
from fitcompress.graph.trace import AxisTrace

__all__ = ["CLOSE", "NARROWEST", "CostTable", "Fit", "Limits", "Tally", "largest_sizes", "tally_of"]

CLOSE = 0.97
"""The share of a limit from which a student counts as filling it."""
_FULL = 0.995
"""The share at which no more is tried."""
NARROWEST = 0.01
"""The width of the smallest student."""
_HALVINGS = 14
_WIDER = (1.05, 1.1, 1.2, 1.4, 1.8, 2.5)
"""Widths, as multiples of the uniform one, to which single axes may grow."""

Sizes = Mapping[Atom, int]


class Tally(NamedTuple):
    """What a student costs."""

    params: int
    """Trained numbers."""
    macs: int
    """Multiply-adds for one sample."""
    size: int
    """Bytes of all its tensors, floating-point ones in float32."""


def tally_of(program: Program) -> Tally:
    """What a program costs as it is."""
    sizes = {name: value.numel() * _item_bytes(value) for name, value in program.tensors.items()}
    costs = measure_costs(program)
    return Tally(costs.params, costs.macs, sum(sizes.values()))


def _item_bytes(value: Tensor) -> int:
    return 4 if value.is_floating_point() else value.element_size()


@dataclass(frozen=True)
class Limits:
    """The most that a student may cost; None is no limit."""

    params: float | None = None
    macs: float | None = None
    size: float | None = None

    def share(self, tally: Tally) -> float:
        """Of the limits, the largest part that is used up: over 1 where one is overstepped."""
        limits = (self.params, self.macs, self.size)
        pairs = zip(tally, limits, strict=True)
        return max((cost / limit for cost, limit in pairs if limit is not None), default=0.0)


class CostTable:
    """The costs of a program as sums of terms, each of which depends on few atoms."""

    def __init__(self, program: Program, trace: AxisTrace) -> None:
        self._terms = [*_tensor_terms(program, trace), *_call_terms(program, trace)]
        self._terms_with: dict[Atom, list[int]] = {}
        for place, (atoms, _) in enumerate(self._terms):
            for atom in atoms:
                self._terms_with.setdefault(atom, []).append(place)

    def tally(self, sizes: Sizes) -> Tally:
        """The costs when the atoms have these sizes, and the others keep theirs."""
        return _of_one(_sum(count(sizes) for _, count in self._terms))

    def change(self, sizes: Sizes, atom: Atom, size: int) -> Tally:
        """What it costs more when one atom gets another size."""
        changed = {**sizes, atom: size}
        counts = [self._terms[place][1] for place in self._terms_with.get(atom, ())]
        after, before = (_sum(count(own) for count in counts) for own in (changed, sizes))
        return _of_one(Tally(*(new - old for new, old in zip(after, before, strict=True))))


_Term = tuple[frozenset[Atom], Callable[[Sizes], Tally]]


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(Tally(0, 0, 0), *tallies, strict=True)))


def _of_one(tally: Tally) -> Tally:
    """Calls are counted at a batch of two, as `count_macs` does."""
    return tally._replace(macs=tally.macs // 2)


def _tensor_terms(program: Program, trace: AxisTrace) -> list[_Term]:
    """Parameters and bytes of all tensors that have the same axes."""
    of_one: dict[tuple[Axis, ...], Tally] = {}
    for name, value in program.tensors.items():
        if name in trace.weights:
            axes = tuple(map(trace.algebra.normal, trace.weights[name]))
            own = Tally(int(name in program.trainable), 0, _item_bytes(value))
            of_one[axes] = _sum((of_one.get(axes, Tally(0, 0, 0)), own))
    return [_tensor_term(trace.algebra, axes, tally) for axes, tally in of_one.items()]


def _tensor_term(algebra: AxisAlgebra, axes: Sequence[Axis], of_one: Tally) -> _Term:
    """`of_one`: what a number of the tensors costs."""

    def count(sizes: Sizes) -> Tally:
        numel = prod(algebra.resize(axis, sizes) for axis in axes)
        return Tally(numel * of_one.params, 0, numel * of_one.size)

    return frozenset(atom for axis in axes for atom in algebra.atoms(axis)), count


def _call_terms(program: Program, trace: AxisTrace) -> list[_Term]:
    """Multiply-adds of each contraction."""
    return [_call_term(node, trace) for node in program.graph.nodes if is_contraction(node)]


def _call_term(node: Node, trace: AxisTrace) -> _Term:
    algebra = trace.algebra
    values = {near.name: trace.values[near.name] for near in (node, *node.all_input_nodes)}
    two = dict.fromkeys(algebra.atoms(trace.batch), 2)

    def count(sizes: Sizes) -> Tally:
        sizes = {**sizes, **two}
        shapes = {name: _resized(algebra, value, sizes) for name, value in values.items()}
        return Tally(0, node_macs(node, shapes), 0)

    return frozenset(atom for value in values.values() for atom in _atoms(algebra, value)), count


def _resized(algebra: AxisAlgebra, value: Any, sizes: Sizes) -> Shape:
    if value is None or isinstance(value, int):
        return value
    return tuple(
        algebra.resize(axis, sizes) if isinstance(axis, tuple) else _resized(algebra, axis, sizes)
        for axis in value
    )


def _atoms(algebra: AxisAlgebra, value: Any) -> set[Atom]:
    found: set[Atom] = set()
    for axis in value or ():
        found |= set(algebra.atoms(axis)) if isinstance(axis, tuple) else _atoms(algebra, axis)
    return found


@dataclass(frozen=True)
class Fit:
    """The largest sizes that were found within some limits."""

    sizes: dict[Atom, int]
    width_mult: float
    """The uniform width that they started from."""
    tally: Tally
    share: float
    """Of the limits, the largest part that is used up; over 1 where even the smallest sizes are too
    large."""
    above: Tally | None
    """The costs of the smallest that was seen over the limits; None where nothing was."""


def largest_sizes(trace: AxisTrace, table: CostTable, limits: Limits) -> Fit:
    """The sizes of the widest uniform student within the limits, then of single axes as much wider
    as still fits. Without one that fits, the narrowest there is.
    """
    thinning = Thinning(trace)
    plans = {width: thinning.sizes(width) for width in (NARROWEST, 1.0)}
    tallies = {width: table.tally(sizes) for width, sizes in plans.items()}
    low, high = NARROWEST, 1.0
    if limits.share(tallies[high]) <= 1:
        return _fit(plans[high], high, tallies[high], limits, None)
    if limits.share(tallies[low]) > 1:
        return _fit(plans[low], low, tallies[low], limits, tallies[low])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        plans[middle] = thinning.sizes(middle)
        tallies[middle] = table.tally(plans[middle])
        if limits.share(tallies[middle]) <= 1:
            low = middle
        else:
            high = middle
    start = _fit(plans[low], low, tallies[low], limits, tallies[high])
    wider = [plans[high], *(thinning.sizes(min(1.0, low * factor)) for factor in _WIDER)]
    return _filled(start, table, limits, wider)


def _fit(
    sizes: dict[Atom, int], width: float, tally: Tally, limits: Limits, above: Tally | None
) -> Fit:
    return Fit(sizes, width, tally, limits.share(tally), above)


def _filled(start: Fit, table: CostTable, limits: Limits, wider: Sequence[Sizes]) -> Fit:
    """Single axes grown to the sizes that they have in wider plans, the costliest first."""
    sizes, tally, above = dict(start.sizes), start.tally, start.above
    for plan in wider:
        growth = {
            atom: table.change(sizes, atom, size)
            for atom, size in plan.items()
            if atom in sizes and size > sizes[atom]
        }
        for atom in sorted(growth, key=lambda atom: -limits.share(growth[atom])):
            if limits.share(tally) > _FULL:
                return _fit(sizes, start.width_mult, tally, limits, above)
            more = table.change(sizes, atom, plan[atom])
            grown = _sum((tally, more))
            if limits.share(grown) <= 1:
                sizes[atom], tally = plan[atom], grown
            elif above is None or limits.share(grown) < limits.share(above):
                above = grown
    return _fit(sizes, start.width_mult, tally, limits, above)
