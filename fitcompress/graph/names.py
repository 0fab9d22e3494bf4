"""What the nodes of a captured graph are called. Layer: graph."""

from __future__ import annotations

from dataclasses import replace

from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fitcompress.graph.program import Program

__all__ = ["plain_name", "tidied"]


def plain_name(node: Node) -> str:
    """`relu` for `aten.relu_.default`, `getitem` for the operator."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.split("::")[-1].strip("_")
    return str(getattr(node.target, "__name__", node.name))


def tidied(program: Program) -> Program:
    """A copy whose nodes are named after what they call and carry nothing but their owner."""
    graph, new = Graph(), dict[Node, Node]()
    for node in program.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), new.__getitem__)
        name = plain_name(node) if node.op == "call_function" else node.name
        new[node] = graph.create_node(node.op, node.target, args, kwargs, name)
        new[node].meta = {"owner": node.meta.get("owner", "")}
    return replace(program, graph=graph)
