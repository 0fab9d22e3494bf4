"""`TraceBuilder`, which axis rules add their findings to, and the records of a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra
from fitcompress.graph.shapes import Shape

__all__ = ["Axes", "Binding", "ConstantBinding", "TraceBuilder", "Value"]

Axes = list[Axis]
"""The axes of a tensor, one for each dimension."""
Value = Any
"""The `Axes` of a tensor, a list of these for several results, None for a number."""


@dataclass(frozen=True)
class Binding:
    """The literal at `argument[index]` of a call is the size of `axis`."""

    node: str
    argument: str
    index: int | None
    axis: Axis
    is_inferable: bool
    """Whether the operation accepts -1 in this place."""


@dataclass(frozen=True)
class ConstantBinding:
    """The float at `argument` of a call may be derived from the size of one of `axes`, as
    1/sqrt(d) is."""

    node: str
    argument: str
    axes: tuple[Axis, ...]


class TraceBuilder:
    """The trace of a program under construction: rules read the axes of earlier values from it and
    record in it what they find.

    Args:
        shapes: of every value, by node name.
    """

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes
        self.algebra = AxisAlgebra()
        self.values: dict[Node, Value] = {}
        self.bindings: list[Binding] = []
        self.constants: list[ConstantBinding] = []
        self._contracted: dict[Node, Axis] = {}
        self._learned: list[Axis] = []
        self._read: list[Axis] = []

    def bind(self, binding: Binding) -> None:
        """Record that a literal is the size of an axis."""
        self.bindings.append(binding)

    def bind_constant(self, binding: ConstantBinding) -> None:
        """Record that a float may be derived from the size of an axis."""
        self.constants.append(binding)

    def contract(self, node: Node, axis: Axis) -> None:
        """Record that a matrix product without weights sums over `axis`."""
        self._contracted[node] = axis

    def contracted_by(self, nodes: Iterable[Node]) -> list[Axis]:
        """The axes that the matrix products among these calls sum over."""
        return [self._contracted[node] for node in nodes if node in self._contracted]

    def learn(self, axis: Axis) -> None:
        """Record that `axis` is the result of a contraction: its indices have no meaning apart from
        the weights."""
        self._learned.append(axis)

    def read(self, axis: Axis) -> None:
        """Record that weights sum over `axis`."""
        self._read.append(axis)

    @property
    def learned_atoms(self) -> frozenset[Atom]:
        """The atoms of the axes given to `learn`, as they are refined by now."""
        return self._atoms(self._learned)

    @property
    def read_atoms(self) -> frozenset[Atom]:
        """The atoms of the axes given to `read`, as they are refined by now."""
        return self._atoms(self._read)

    def _atoms(self, axes: Iterable[Axis]) -> frozenset[Atom]:
        return frozenset(atom for axis in axes for atom in self.algebra.atoms(axis))
