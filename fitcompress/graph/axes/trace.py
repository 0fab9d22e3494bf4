"""Runs the axis rules over a program: the axes of every value and every literal that came from a
size. Layer: graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra
from fitcompress.graph.axes.rules import apply_rule
from fitcompress.graph.axes.rules.call import (
    KERNEL,
    PLACE,
    Axes,
    Binding,
    Call,
    ConstantBinding,
    Value,
)
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["OUTPUT", "STRUCTURAL", "AxisTrace", "free_weight_atoms", "trace_axes"]

_BATCH_SIZE = 11
"""A batch size for the analysis that is no factor of common sizes, so that it is not mistaken for
one."""

_FEWER = 2
"""Another batch size: what moves with it holds the batch."""

INPUT, OUTPUT = "an input", "an output"
STRUCTURAL = (INPUT, OUTPUT, PLACE, KERNEL)
"""Reasons for being frozen that lie in the task and not in the analysis."""

_WEIGHT_ARGUMENTS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class AxisTrace:
    """What the rules found in one program."""

    algebra: AxisAlgebra
    values: Mapping[str, Value]
    """By node name: the axes of a tensor, a list of these, or None for a number."""
    weights: Mapping[str, Axes]
    """The axes of every tensor of the program, by its dotted name."""
    batch: Axis
    bindings: tuple[Binding, ...]
    constants: tuple[ConstantBinding, ...]
    read: frozenset[Atom]
    """Of the axes that weights sum over."""

    def is_batch(self, axis: Axis) -> bool:
        """Whether the batch is a factor of the axis."""
        batch = set(self.algebra.atoms(self.batch))
        return any(atom in batch for atom in self.algebra.atoms(axis))


def trace_axes(program: Program) -> AxisTrace:
    """The axes of all values of a program. Nothing is modified."""
    shapes, fewer = (propagate_shapes(program, size) for size in (_BATCH_SIZE, _FEWER))
    algebra = AxisAlgebra()
    batch = algebra.new(_BATCH_SIZE, frozen="the batch")
    values: dict[Node, Value] = {}
    contracted: dict[Node, Axis] = {}
    learned: list[Axis] = []
    read: list[Axis] = []
    bindings: list[Binding] = []
    constants: list[ConstantBinding] = []
    tables = _tables(program)
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            if isinstance(shapes[node.name], int | float | bool):
                continue
            call = Call(
                node, algebra, shapes, values, contracted, learned, read, bindings, constants
            )
            values[node] = apply_rule(call)
            _check_sizes(algebra, node, values[node], shapes[node.name])
            _hold_batch(algebra, batch, values[node], shapes[node.name], fewer[node.name])
        else:
            values[node] = _plain_value(algebra, node, shapes, values, batch)
    for node in output_nodes(program.graph):
        _freeze_output(algebra, values[node])
    table_axes = [values[node] for node in program.graph.nodes if node.target in tables]
    _freeze_tables(algebra, table_axes, learned)
    return AxisTrace(
        algebra,
        {node.name: value for node, value in values.items()},
        {str(node.target): value for node, value in values.items() if node.op == "get_attr"},
        batch,
        tuple(bindings),
        tuple(constants),
        frozenset(atom for axis in read for atom in algebra.atoms(axis)),
    )


def _plain_value(
    algebra: AxisAlgebra,
    node: Node,
    shapes: Mapping[str, Shape],
    values: Mapping[Node, Value],
    batch: Axis,
) -> Value:
    shape = shapes[node.name]
    if node.op == "placeholder":
        return [batch, *(algebra.new(size, frozen=INPUT) for size in shape[1:])]
    if node.op == "get_attr":
        return [algebra.new(size) for size in shape]
    if node.op == "call_function" and isinstance(shape, tuple):
        source, index = node.args
        assert isinstance(source, Node) and isinstance(index, int), node.format_node()
        return values[source][index]
    return None


def _tables(program: Program) -> frozenset[str]:
    """Tensors that are neither trained nor taken by some operation as its weights, however the
    source registered them: indices, masks, positions, constants."""
    weights = set(program.trainable)
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        schema = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(schema, node.args, strict=False)), **node.kwargs}
        for argument in _WEIGHT_ARGUMENTS:
            value = given.get(argument)
            if isinstance(value, Node) and value.op == "get_attr":
                weights.add(str(value.target))
    return frozenset(program.tensors) - weights


def _freeze_tables(algebra: AxisAlgebra, tables: Iterable[Axes], learned: Iterable[Axis]) -> None:
    """Where a table meets channels that a weight gives, it loses the same ones; whatever else it
    holds stays as it is."""
    free = {atom for axis in learned for atom in algebra.atoms(axis)}
    for axis in (axis for axes in tables for axis in axes):
        for atom in algebra.atoms(axis):
            if atom not in free:
                algebra.freeze((atom,), "a table that is no weight")


def _freeze_output(algebra: AxisAlgebra, value: Value) -> None:
    for axis in value or ():
        algebra.freeze(axis, OUTPUT)


def _check_sizes(algebra: AxisAlgebra, node: Node, value: Value, shape: Shape) -> None:
    """A rule that returns other sizes than the operation is a fault of ours."""
    if shape and isinstance(shape[0], tuple):
        for item, own in zip(value, shape, strict=True):
            _check_sizes(algebra, node, item, own)
    else:
        found = tuple(algebra.size(axis) for axis in value)
        assert found == shape, f"{node.format_node()}: rule gave {found}, the operation {shape}"


def _hold_batch(
    algebra: AxisAlgebra, batch: Axis, value: Value, shape: Shape, fewer: Shape
) -> None:
    """A size that moves with the batch holds it, also where no rule could say so."""
    for part, size, less in zip(value, shape, fewer, strict=True):
        if isinstance(size, tuple):
            _hold_batch(algebra, batch, part, size, less)
        elif size != less and size * _FEWER == less * _BATCH_SIZE:
            beside = algebra.new(size // _BATCH_SIZE, frozen="beside the batch")
            if not set(algebra.atoms(part)) & set(algebra.atoms(batch)):
                algebra.unify(part, (*batch, *beside))


def free_weight_atoms(trace: AxisTrace) -> set[Atom]:
    """The atoms that thinning may scale: in a weight and not frozen."""
    algebra = trace.algebra
    found = {
        atom for axes in trace.weights.values() for axis in axes for atom in algebra.atoms(axis)
    }
    return {atom for atom in found if not algebra.frozen_reason(atom)}
