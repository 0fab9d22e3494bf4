"""A linear map at the end of a network whose output is as wide as its inside. Layer: graph.

An embedding, or a feature map, often is the residual stream itself. Its width is the output's,
which is not ours to choose, so nothing could get thinner; with a map behind it, all before it can.
"""

from __future__ import annotations

import torch
from torch.fx import Node

from fitcompress.graph.axes.trace import OUTPUT, AxisTrace
from fitcompress.graph.names import TakenNames
from fitcompress.graph.program import Program, clone, output_nodes
from fitcompress.student.depth import Deepened

__all__ = ["project_outputs"]

aten = torch.ops.aten


def project_outputs(program: Program, trace: AxisTrace) -> Deepened:
    """The program with a linear map behind each output along the dimensions that weights inside of
    it read too; unchanged where there are none. It starts as the identity. Nothing is modified.

    trace: the axes of `program`.
    """
    dims = {node.name: _shared_dims(trace, node.name) for node in output_nodes(program.graph)}
    if not any(dims.values()):
        return Deepened(program)
    projected = clone(program)
    graph, end = projected.graph, projected.graph.output_node()
    taken = TakenNames(program.tensors)
    names: list[str] = []
    outputs = []
    for node in output_nodes(graph):
        last = node
        for dim in dims[node.name]:
            width = trace.algebra.size(trace.values[node.name][dim])
            names.append(f"{taken.free_path('output_projection')}.weight")
            taken.take(names[-1:])
            projected.tensors[names[-1]] = torch.empty(width, width, device="meta")
            with graph.inserting_before(end):
                last = _map_along(last, dim, names[-1])
        outputs.append(last)
    end.args = (tuple(outputs),)
    graph.lint()
    trainable = projected.trainable.union(names)
    done = Program(graph, projected.tensors, trainable, program.inputs)
    return Deepened(done, fresh=frozenset(names), identities=frozenset(names))


def _shared_dims(trace: AxisTrace, name: str) -> list[int]:
    """The dimensions of an output that are fixed only because they are an output's, and that
    weights inside of the network sum over."""
    algebra = trace.algebra
    return [
        dim
        for dim, axis in enumerate(trace.values[name])
        if not trace.is_batch(axis)
        and any(a in trace.read and algebra.frozen_reason(a) == OUTPUT for a in algebra.atoms(axis))
    ]


def _map_along(node: Node, dim: int, weight: str) -> Node:
    """The linear map along one dimension; all nodes go where the graph inserts."""
    graph = node.graph
    matrix = graph.create_node("get_attr", weight)
    last = graph.call_function(aten.transpose.int, (node, dim, -1))
    mapped = graph.call_function(aten.linear.default, (last, matrix))
    return graph.call_function(aten.transpose.int, (mapped, dim, -1))
