"""Linear layers after outputs whose width is also the width of inner layers.

The output of an embedding model is often the residual stream itself. Since its width is fixed,
no layer could be thinned; with a linear layer after the output, all layers before it can.
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
    """The program with linear layers after its outputs, along dimensions that inner weights read.

    The layers start as the identity. A program without such dimensions is returned unchanged.
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
    """The dimensions of an output that are fixed only because it is an output, and that inner
    weights sum over.
    """
    algebra = trace.algebra
    return [
        dim
        for dim, axis in enumerate(trace.values[name])
        if not trace.is_batch(axis)
        and any(a in trace.read and algebra.frozen_reason(a) == OUTPUT for a in algebra.atoms(axis))
    ]


def _map_along(node: Node, dim: int, weight: str) -> Node:
    """A linear layer along one dimension, at the graph's insert point."""
    graph = node.graph
    matrix = graph.create_node("get_attr", weight)
    last = graph.call_function(aten.transpose.int, (node, dim, -1))
    mapped = graph.call_function(aten.linear.default, (last, matrix))
    return graph.call_function(aten.transpose.int, (mapped, dim, -1))
