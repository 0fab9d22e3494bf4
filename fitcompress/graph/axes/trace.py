"""Runs the axis rules over a program: the axes of every value, and every literal that is a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra
from fitcompress.graph.axes.builder import Axes, Binding, ConstantBinding, TraceBuilder, Value
from fitcompress.graph.axes.rules import KERNEL, PLACE, Call, apply_rule
from fitcompress.graph.program import WEIGHT_ARGUMENTS, Program, named_arguments, output_nodes
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["OUTPUT", "STRUCTURAL", "AxisTrace", "free_weight_atoms", "trace_axes"]

_BATCH_SIZE = 11
"""Divides few common sizes, so that the batch is not mistaken for a factor of another axis."""

_OTHER_BATCH_SIZE = 2
"""Sizes that are proportional to the batch size at both batch sizes contain the batch."""

INPUT, OUTPUT = "an input", "an output"
STRUCTURAL = (INPUT, OUTPUT, PLACE, KERNEL)
"""Reasons for being frozen that lie in the task and not in the analysis."""


@dataclass(frozen=True)
class AxisTrace:
    """The axes of one program."""

    algebra: AxisAlgebra
    values: Mapping[str, Value]
    """By node name: the axes of a tensor, a list of these, or None for a number."""
    weights: Mapping[str, Axes]
    """The axes of every tensor of the program, by its dotted name."""
    batch: Axis
    bindings: tuple[Binding, ...]
    constants: tuple[ConstantBinding, ...]
    read: frozenset[Atom]
    """The atoms of the axes that weights sum over."""

    def is_batch(self, axis: Axis) -> bool:
        """Whether the batch is a factor of the axis."""
        return _shares_atoms(self.algebra, axis, self.batch)


def trace_axes(program: Program) -> AxisTrace:
    """The axes of all values of a program. Nothing is modified."""
    trace = TraceBuilder(propagate_shapes(program, _BATCH_SIZE))
    other_shapes = propagate_shapes(program, _OTHER_BATCH_SIZE)
    batch = trace.algebra.new(_BATCH_SIZE, frozen="the batch")
    for node in program.graph.nodes:
        value = trace.values[node] = _value_axes(trace, node, batch)
        if value is not None:
            shape = trace.shapes[node.name]
            _check_sizes(trace.algebra, node, value, shape)
            _mark_batch(trace.algebra, batch, value, shape, other_shapes[node.name])
    for node in output_nodes(program.graph):
        for axis in trace.values[node] or ():
            trace.algebra.freeze(axis, OUTPUT)
    _freeze_tables(trace, program)
    values = {node.name: value for node, value in trace.values.items()}
    bindings, constants = tuple(trace.bindings), tuple(trace.constants)
    weights = _weight_axes(trace)
    return AxisTrace(trace.algebra, values, weights, batch, bindings, constants, trace.read_atoms)


def _value_axes(trace: TraceBuilder, node: Node, batch: Axis) -> Value:
    shape, new = trace.shapes[node.name], trace.algebra.new
    if node.op == "placeholder":
        return [batch, *(new(size, frozen=INPUT) for size in shape[1:])]
    if node.op == "get_attr":
        return [new(size) for size in shape]
    if node.op != "call_function" or not isinstance(shape, tuple):
        return None
    if isinstance(node.target, OpOverload):
        return apply_rule(Call(trace, node))
    source, index = node.args
    assert isinstance(source, Node) and isinstance(index, int), node.format_node()
    return trace.values[source][index]


def _weight_axes(trace: TraceBuilder) -> dict[str, Axes]:
    tensors = (item for item in trace.values.items() if item[0].op == "get_attr")
    return {str(node.target): axes for node, axes in tensors}


def _freeze_tables(trace: TraceBuilder, program: Program) -> None:
    """Freeze the axes of tables, except those unified with the output channels of a weight, which
    are thinned with the weight."""
    tables, learned = _tables(program), trace.learned_atoms
    for axes in (axes for name, axes in _weight_axes(trace).items() if name in tables):
        for atom in (atom for axis in axes for atom in trace.algebra.atoms(axis)):
            if atom not in learned:
                trace.algebra.freeze((atom,), "a constant table")


def _tables(program: Program) -> frozenset[str]:
    """Tensors that are neither trained nor an operation's weights, however the source registered
    them: indices, masks, positions, constants."""
    weights = set(program.trainable)
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            given = named_arguments(node)
            values = (given.get(argument) for argument in WEIGHT_ARGUMENTS)
            nodes = (value for value in values if isinstance(value, Node))
            weights.update(str(value.target) for value in nodes if value.op == "get_attr")
    return frozenset(program.tensors) - weights


def _check_sizes(algebra: AxisAlgebra, node: Node, value: Value, shape: Shape) -> None:
    """Assert that the axes from the rule have the sizes of the operation's result."""
    if shape and isinstance(shape[0], tuple):
        for item, own in zip(value, shape, strict=True):
            _check_sizes(algebra, node, item, own)
    else:
        found = tuple(algebra.size(axis) for axis in value)
        assert found == shape, f"{node.format_node()}: {found} by its rule, {shape} when run"


def _mark_batch(
    algebra: AxisAlgebra, batch: Axis, value: Value, shape: Shape, other: Shape
) -> None:
    """Make the batch a factor of each axis whose size is proportional to the batch size, where no
    rule has done so."""
    for part, size, other_size in zip(value, shape, other, strict=True):
        if isinstance(size, tuple):
            _mark_batch(algebra, batch, part, size, other_size)
        elif size != other_size and size * _OTHER_BATCH_SIZE == other_size * _BATCH_SIZE:
            rest = algebra.new(size // _BATCH_SIZE, frozen="beside the batch")
            if not _shares_atoms(algebra, part, batch):
                algebra.unify(part, (*batch, *rest))


def _shares_atoms(algebra: AxisAlgebra, one: Axis, other: Axis) -> bool:
    return not set(algebra.atoms(one)).isdisjoint(algebra.atoms(other))


def free_weight_atoms(trace: AxisTrace) -> set[Atom]:
    """The atoms that thinning may scale: in a weight and not frozen."""
    algebra = trace.algebra
    found = {
        atom for axes in trace.weights.values() for axis in axes for atom in algebra.atoms(axis)
    }
    return {atom for atom in found if not algebra.frozen_reason(atom)}
