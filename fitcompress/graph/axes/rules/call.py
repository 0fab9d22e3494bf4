"""`Call`: the argument of an axis rule.

A rule reads the axes of the call's arguments, unifies those that must be equal, returns the axes of
the results, and *binds* every literal that is a size to its axis. Thinning rewrites bound literals
and nothing else, so each rule is the only place that knows an operation's axes and its literals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch.fx import Node

from fitcompress.graph.axes.algebra import Axis
from fitcompress.graph.axes.builder import Axes, Binding, ConstantBinding, TraceBuilder, Value
from fitcompress.graph.program import named_arguments, operation

__all__ = ["KERNEL", "PLACE", "Call", "Rule"]

PLACE = "positions, not channels"
KERNEL = "the size of a kernel"
"""Reasons for being frozen that lie in the task and not in the analysis."""

Rule = Callable[["Call"], Value]


class Call:
    """A call of an ATen operation: its arguments, their axes, and the trace that its rule extends.

    Attributes:
        name: the operation without its namespace and overload, such as "conv2d".
        shape: the shape of the result, or of each result.
        arguments: by name in the schema's order, defaults filled in; tensors are nodes.
    """

    def __init__(self, trace: TraceBuilder, node: Node) -> None:
        self.trace, self.algebra, self.node = trace, trace.algebra, node
        self.name = operation(node)
        self.shape = trace.shapes[node.name]
        self.arguments = named_arguments(node)

    def __getitem__(self, argument: str) -> Any:
        """The value of an argument; nodes that are numbers are replaced by their values."""
        return self._number(self.arguments[argument])

    def get(self, *arguments: str) -> Any:
        """The value of the first of these arguments that the operation has, or None."""
        return next((self[name] for name in arguments if name in self.arguments), None)

    def _number(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._number(item) for item in value]
        if isinstance(value, Node) and self.trace.values.get(value) is None:
            return self.trace.shapes[value.name]
        return value

    def axes(self, argument: str) -> Axes:
        """The axes of a tensor argument."""
        return list(self.trace.values[self.arguments[argument]])

    def list_axes(self, argument: str) -> list[Axes]:
        """The axes of each tensor of a list argument."""
        return [list(self.trace.values[node]) for node in self.arguments[argument]]

    def is_tensor(self, argument: str) -> bool:
        """Whether the operation has the argument and it is a tensor."""
        value = self.arguments.get(argument)
        return isinstance(value, Node) and isinstance(self.trace.values.get(value), list)

    def tensor_names(self) -> list[str]:
        """The names of the arguments that are tensors."""
        return [name for name in self.arguments if self.is_tensor(name)]

    def all_axes(self) -> Iterable[Axes]:
        """The axes of every tensor among the arguments, including those in lists."""
        for node in self.node.all_input_nodes:
            yield from _tensors(self.trace.values.get(node))

    def fresh(self, shape: Sequence[int], reason: str = "") -> Axes:
        """New axes for a shape; a non-empty `reason` freezes them."""
        return [self.algebra.new(size, frozen=reason) for size in shape]

    def freeze(self, axes: Iterable[Axis], reason: str) -> None:
        """Freeze these axes."""
        for axis in axes:
            self.algebra.freeze(axis, reason)

    def bind(
        self, axis: Axis, argument: str, index: int | None = None, *, inferable: bool = False
    ) -> None:
        """Record that a literal of this call is the size of `axis`."""
        self.trace.bind(Binding(self.node.name, argument, index, axis, inferable))

    def bind_constant(self, argument: str, axes: Iterable[Axis]) -> None:
        """Record that a float of this call, if it is one, may be derived from the size of one of
        `axes`."""
        if isinstance(self.arguments.get(argument), float):
            self.trace.bind_constant(ConstantBinding(self.node.name, argument, tuple(axes)))

    def contract(self, axis: Axis) -> None:
        """Record that this matrix product, of no weights, sums over `axis`."""
        self.trace.contract(self.node, axis)


def _tensors(value: Value) -> Iterable[Axes]:
    if value is None:
        return
    if value and isinstance(value[0], list):
        for item in value:
            yield from _tensors(item)
    else:
        yield value
