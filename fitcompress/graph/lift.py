"""Lifts a program into a network of ordinary modules. Layer: graph.

`build_network` gives a `torch.fx.GraphModule` with `nn.Conv2d`, `nn.BatchNorm2d` and so on under
the names of the source, so that hooks, `state_dict`, `train()` and exporters work as on any module.
In eval mode its outputs equal the program's bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fitcompress.graph.leaves import Leaf, find_leaves, make_leaf
from fitcompress.graph.program import Program, output_nodes

__all__ = ["Block", "build_network", "place", "share_leaves"]

Block = tuple[str, tuple[str, ...]]
"""Dotted name and the names of its nodes: contiguous in topological order, with one value that is
used outside.
"""


def build_network(program: Program, blocks: Iterable[Block] = ()) -> GraphModule:
    """The program as a network whose `state_dict()` has the program's names; in eval mode the
    outputs are equal bit by bit.

    One output comes back as a tensor, several as a tuple. The network gets copies of the tensors
    (meta ones stay on meta). Each block becomes a nested GraphModule under its own name. A block
    stays flat (which changes nothing but what can be hooked) when a leaf under another name is
    called in it, or one under its name is called outside.
    """
    leaves = find_leaves(program)
    root = nn.Module()
    for leaf in dict.fromkeys(leaves.values()):
        if not _has(root, leaf.path):
            place(root, leaf.path, make_leaf(leaf, program))
    graph = _with_leaves(program.graph, leaves)
    _place_loose_tensors(root, graph, program)
    for block in _nestable(blocks, graph):
        graph = _nest(root, graph, block)
    return _finished(root, graph)


def share_leaves(network: GraphModule, program: Program) -> GraphModule:
    """A flat network for a cut of the program that `network` was built from; it holds the very
    modules of `network`.

    Training one trains the other. Move and cast the full network before sharing; buffers that no
    module owns are shared only until then.
    """
    paths = dict(_leaf_paths(network))
    leaves = {
        node: Leaf(paths[node.name], "", (), (), _activation(node, paths[node.name]))
        for node in program.graph.nodes
        if node.name in paths
    }
    root = nn.Module()
    for leaf in leaves.values():
        place(root, leaf.path, network.get_submodule(leaf.path))
    graph = _with_leaves(program.graph, leaves)
    for node in graph.nodes:
        if node.op == "get_attr":
            place(root, str(node.target), _attribute(network, str(node.target)))
    return _finished(root, graph)


def _leaf_paths(network: GraphModule, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(node name, module path) of every leaf call of a network and its nested blocks."""
    for node in network.graph.nodes:
        if node.op != "call_module":
            continue
        module = network.get_submodule(str(node.target))
        if isinstance(module, GraphModule):
            yield from _leaf_paths(module, f"{prefix}{node.target}.")
        else:
            yield node.name, f"{prefix}{node.target}"


def _activation(node: Node, path: str) -> Node:
    """The argument of a leaf call that is not one of its own tensors; it may be a tensor too."""
    return next(
        source
        for source in node.all_input_nodes
        if source.op != "get_attr" or not str(source.target).startswith(f"{path}.")
    )


def _with_leaves(graph: Graph, leaves: dict[Node, Leaf]) -> Graph:
    """A copy in which each leaf call is a `call_module` of the same node name."""
    copy, new = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node in leaves:
            leaf = leaves[node]
            new[node] = copy.create_node(
                "call_module", leaf.path, (new[leaf.source],), {}, node.name
            )
            new[node].meta.update(node.meta)
        else:
            new[node] = copy.node_copy(node, new.__getitem__)
    for node in reversed(copy.nodes):
        if node.op == "get_attr" and not node.users:
            copy.erase_node(node)
    return copy


def _finished(root: nn.Module, graph: Graph) -> GraphModule:
    """The module of a graph whose output is a tuple; a single output is handed out alone. Starts in
    eval mode.
    """
    values = output_nodes(graph)
    if len(values) == 1:
        graph.output_node().args = (values[0],)
    network = GraphModule(root, graph, "Network")
    return network.eval()


# --- tensors and modules under dotted names -------------------------------------------------------


def _place_loose_tensors(root: nn.Module, graph: Graph, program: Program) -> None:
    for node in graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            value = program.tensors[name].detach().clone()
            is_weight = name in program.trainable
            place(root, name, nn.Parameter(value) if is_weight else value)


def place(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Puts a module, a parameter or a buffer under a dotted name, with plain modules in between."""
    *parents, last = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        child = root._modules[parent]
        assert child is not None
        root = child
    if isinstance(value, nn.Module):
        root.add_module(last, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(last, value)
    else:
        root.register_buffer(last, value)


def _has(root: nn.Module, path: str) -> bool:
    child: nn.Module | None = root
    for part in path.split("."):
        child = child._modules.get(part) if child is not None else None
    return child is not None


def _attribute(root: nn.Module, path: str) -> Any:
    value: Any = root
    for part in path.split("."):
        value = getattr(value, part)
    return value


# --- nested blocks --------------------------------------------------------------------------------


def _nestable(blocks: Iterable[Block], graph: Graph) -> list[Block]:
    """The blocks that hold exactly the modules and tensors under their own name."""
    by_name = {node.name: node for node in graph.nodes}
    found = []
    for name, members in blocks:
        inside = {by_name[member] for member in members if member in by_name}
        if inside and _is_self_contained(name, inside, graph):
            found.append((name, tuple(members)))
    return found


def _is_self_contained(name: str, inside: set[Node], graph: Graph) -> bool:
    prefix = f"{name}."
    for node in graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith(prefix):
            is_kept = all(user in inside for user in node.users)
        elif node.op == "call_module":
            is_kept = str(node.target).startswith(prefix) == (node in inside)
            is_kept = is_kept and node.target != name
        else:
            is_kept = True
        if not is_kept:
            return False
    return len(_results(inside)) == 1


def _results(inside: set[Node]) -> list[Node]:
    """The nodes of a block whose values are used outside."""
    return [node for node in inside if node.op != "get_attr" and not inside.issuperset(node.users)]


def _nest(root: nn.Module, graph: Graph, block: Block) -> Graph:
    """A copy of the graph in which the block is one call of a nested module, placed in `root` under
    the block's name.
    """
    name, members = block
    prefix = f"{name}."
    inside = {node for node in graph.nodes if node.name in set(members) and node.op != "get_attr"}
    inside |= {
        node
        for node in graph.nodes
        if node.op == "get_attr" and str(node.target).startswith(prefix)
    }
    (result,) = _results(inside)
    inner, sources = _inner_graph(graph, inside, result, prefix)
    holder = root.get_submodule(name) if _has(root, name) else nn.Module()
    place(root, name, GraphModule(holder, inner, "Block"))
    return _outer_graph(graph, inside, result, name, sources)


def _inner_graph(
    graph: Graph, inside: set[Node], result: Node, prefix: str
) -> tuple[Graph, list[Node]]:
    """The block as a graph of its own with relative names, and the outer nodes that feed it."""
    inner, new = Graph(), dict[Node, Node]()
    ordered = [node for node in graph.nodes if node in inside]
    sources = list(
        dict.fromkeys(s for node in ordered for s in node.all_input_nodes if s not in inside)
    )
    for source in sources:
        new[source] = inner.placeholder(source.name)
    for node in ordered:
        new[node] = inner.node_copy(node, new.__getitem__)
        if node.op in ("get_attr", "call_module"):
            new[node].target = str(node.target).removeprefix(prefix)
    inner.output(new[result])
    return inner, sources


def _outer_graph(
    graph: Graph, inside: set[Node], result: Node, name: str, sources: list[Node]
) -> Graph:
    """The graph with the block's nodes replaced by one call, placed where the block's result was
    computed.
    """
    outer, new = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node is result:
            args = tuple(new[source] for source in sources)
            new[node] = outer.create_node("call_module", name, args, {}, name.replace(".", "_"))
            new[node].meta.update(owner=name)
        elif node not in inside:
            new[node] = outer.node_copy(node, new.__getitem__)
    return outer
