"""One call of a graph as an axis rule sees it, and what a rule can say of it. Layer: graph.

A rule reads the axes of the call's arguments, unifies what must agree, returns the axes of the
results, and *binds* every literal that came from a size to the axis whose size it is. Thinning
rewrites bound literals and nothing else, so what an operation means for the axes and how its
literals change stand side by side, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from fitcompress.graph.axes.algebra import Axis, AxisAlgebra
from fitcompress.graph.program import operation
from fitcompress.graph.shapes import Shape

__all__ = ["KERNEL", "PLACE", "Axes", "Binding", "Call", "ConstantBinding", "Rule", "Value"]

PLACE = "a place, not a channel"
KERNEL = "a kernel's extent"
"""Reasons for being frozen that lie in the task and not in the analysis."""

Axes = list[Axis]
"""The axes of a tensor, one for each dimension."""
Value = Any
"""`Axes` of a tensor, a list of these for several results, None for a number."""
Rule = Callable[["Call"], Value]


@dataclass(frozen=True)
class Binding:
    """The literal at `argument[index]` of the call is the size of `axis`."""

    node: str
    argument: str
    index: int | None
    axis: Axis
    is_inferable: bool
    """Whether the operation accepts -1 in this place."""


@dataclass(frozen=True)
class ConstantBinding:
    """The float at `argument` of the call may have been made from the size of one of `axes`, as
    1/sqrt(d) is."""

    node: str
    argument: str
    axes: tuple[Axis, ...]


@dataclass
class Call:
    """A `call_function` node with an ATen target, its shapes and the axes of what it takes."""

    node: Node
    algebra: AxisAlgebra
    shapes: Mapping[str, Shape]
    values: Mapping[Node, Value]
    contracted: dict[Node, Axis]
    """For the results of matrix products without weights: the axis that was summed over."""
    learned: list[Axis] = field(default_factory=list)
    """Axes whose places have no meaning but what weights give them: the results of contractions."""
    read: list[Axis] = field(default_factory=list)
    """Axes that weights sum over."""
    bindings: list[Binding] = field(default_factory=list)
    constants: list[ConstantBinding] = field(default_factory=list)

    def __post_init__(self) -> None:
        schema = self.node.target._schema.arguments  # type: ignore[union-attr]
        self.arguments: dict[str, Any] = {a.name: a.default_value for a in schema}
        self.arguments.update(zip(self.arguments, self.node.args, strict=False))
        self.arguments.update(self.node.kwargs)

    @property
    def name(self) -> str:
        """The operation without its namespace and overload, such as "conv2d"."""
        return operation(self.node)

    @property
    def shape(self) -> Shape:
        """The shape of the result, or of each result."""
        return self.shapes[self.node.name]

    def __getitem__(self, argument: str) -> Any:
        """The argument, its default where it is not given; nodes of numbers are replaced by their
        values."""
        return self._number(self.arguments[argument])

    def get(self, *arguments: str) -> Any:
        """The first of these arguments that the operation has; None when it has none of them."""
        return next((self[name] for name in arguments if name in self.arguments), None)

    def _number(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._number(item) for item in value]
        if isinstance(value, Node) and self.values.get(value) is None:
            return self.shapes[value.name]
        return value

    def axes(self, argument: str) -> Axes:
        """The axes of a tensor argument."""
        return list(self.values[self.arguments[argument]])

    def list_axes(self, argument: str) -> list[Axes]:
        """The axes of each tensor of a list argument."""
        return [list(self.values[node]) for node in self.arguments[argument]]

    def is_tensor(self, argument: str) -> bool:
        """Whether the argument is there and a tensor."""
        value = self.arguments.get(argument)
        return isinstance(value, Node) and isinstance(self.values.get(value), list)

    def tensor_names(self) -> list[str]:
        """The arguments that are tensors."""
        return [name for name in self.arguments if self.is_tensor(name)]

    def all_axes(self) -> Iterable[Axes]:
        """The axes of every tensor that the call takes, in lists too."""
        for node in self.node.all_input_nodes:
            yield from _tensors(self.values.get(node))

    def fresh(self, shape: Sequence[int], reason: str = "") -> Axes:
        """New axes for a shape, frozen for `reason` if one is given."""
        return [self.algebra.new(size, frozen=reason) for size in shape]

    def freeze(self, axes: Iterable[Axis], reason: str) -> None:
        """Freeze these axes, saying where."""
        for axis in axes:
            self.algebra.freeze(axis, reason)

    def bind(
        self, axis: Axis, argument: str, index: int | None = None, *, inferable: bool = False
    ) -> None:
        """Say that a literal of this call is the size of `axis`."""
        self.bindings.append(Binding(self.node.name, argument, index, axis, inferable))

    def bind_constant(self, argument: str, axes: Iterable[Axis]) -> None:
        """Say that a float of this call may have been made from the size of one of `axes`."""
        if isinstance(self.arguments.get(argument), float):
            self.constants.append(ConstantBinding(self.node.name, argument, tuple(axes)))


def _tensors(value: Value) -> Iterable[Axes]:
    if value is None:
        return
    if value and isinstance(value[0], list):
        for item in value:
            yield from _tensors(item)
    else:
        yield value
