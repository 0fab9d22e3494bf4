"""Lifts a program into a network of standard modules.

`build_network` returns a `torch.fx.GraphModule` with `nn.Conv2d`, `nn.BatchNorm2d` and so on under
their original names, so that hooks, `state_dict`, `train()` and exporters work as on any module. In
eval mode its outputs are bit-identical to the program's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from fitcompress.graph.leaves import Leaf, find_leaves, make_leaf
from fitcompress.graph.program import Program, output_nodes

__all__ = ["BlockNodes", "build_network", "place", "share_leaves"]

BlockNodes = tuple[str, tuple[str, ...]]
"""The dotted name of a block and the names of its nodes, contiguous in topological order; one of
their values is used outside the block.
"""


def build_network(program: Program, blocks: Iterable[BlockNodes] = ()) -> GraphModule:
    """The program as a network whose `state_dict()` has the program's names; in eval mode its
    outputs are bit-identical.

    A single output is returned as a tensor, several as a tuple. The network gets copies of the
    tensors (meta tensors stay on meta). Each block becomes a nested GraphModule under its own name,
    unless a leaf of another name is called inside it or a leaf below its name outside it: such a
    block stays flat, which only affects where hooks can be registered.
    """
    leaves = find_leaves(program)
    root = nn.Module()
    for leaf in dict.fromkeys(leaves.values()):
        if not _has(root, leaf.path):
            place(root, leaf.path, make_leaf(leaf, program))
    graph = _with_leaves(program.graph, leaves)
    _place_loose_tensors(root, graph, program)
    return _finished(root, _with_blocks(root, graph, _nestable(blocks, graph)))


def share_leaves(network: GraphModule, program: Program) -> GraphModule:
    """A flat network for a cut of the program that `network` was built from, which shares the
    modules of `network`.

    Training one trains the other. Move and cast the full network before sharing: doing so later
    replaces the buffers that belong to no leaf module, which are then no longer shared.
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
    """The argument of a leaf call that is not one of the leaf's own tensors."""
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
    """The module of a graph, in eval mode; it returns a single output without the tuple."""
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
    """Registers a module, parameter or buffer under a dotted name, with any modules in between."""
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


@dataclass(frozen=True)
class _Nest:
    """The nodes of a block that becomes a nested module."""

    name: str
    nodes: tuple[Node, ...]
    """The block's calls and tensors, in order."""
    result: Node
    """The node whose value is used outside."""

    @property
    def sources(self) -> tuple[Node, ...]:
        """The nodes outside the block whose values it reads."""
        inside = set(self.nodes)
        used = (source for node in self.nodes for source in node.all_input_nodes)
        return tuple(dict.fromkeys(source for source in used if source not in inside))


def _nestable(blocks: Iterable[BlockNodes], graph: Graph) -> list[_Nest]:
    """The blocks that contain exactly the modules and tensors below their name."""
    by_name = {node.name: node for node in graph.nodes}
    order = {node: place for place, node in enumerate(graph.nodes)}
    below = _below(graph)
    found = []
    for name, members in blocks:
        given = (by_name[member] for member in members if member in by_name)
        calls = {node for node in given if node.op != "get_attr"}
        results = _results(calls)
        if len(results) == 1 and _is_self_contained(name, calls, below):
            tensors = {node for node in below.get(name, ()) if node.op == "get_attr"}
            nodes = sorted(calls | tensors, key=order.__getitem__)
            found.append(_Nest(name, tuple(nodes), results[0]))
    return found


def _below(graph: Graph) -> dict[str, list[Node]]:
    """By dotted name: the module calls and tensors at or below it."""
    below: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            for name in accumulate(str(node.target).split("."), "{}.{}".format):
                below.setdefault(name, []).append(node)
    return below


def _is_self_contained(name: str, calls: set[Node], below: dict[str, list[Node]]) -> bool:
    """Whether the block's calls use all modules and tensors below its name, no other module, and
    no call outside the block uses them."""
    own = below.get(name, ())
    modules = {node for node in own if node.op == "call_module"}
    tensors = (node for node in own if node.op == "get_attr")
    return (
        modules == {node for node in calls if node.op == "call_module"}
        and all(node.target != name for node in modules)
        and all(calls.issuperset(tensor.users) for tensor in tensors)
    )


def _results(calls: set[Node]) -> list[Node]:
    """The nodes of a block whose values are used outside."""
    return [node for node in calls if not calls.issuperset(node.users)]


def _with_blocks(root: nn.Module, graph: Graph, nests: Sequence[_Nest]) -> Graph:
    """A copy of the graph in which each block is one call of a nested module, registered in `root`
    under the block's name. The call takes the place of the node that computed the block's result.
    """
    by_result = {nest.result: nest for nest in nests}
    inside = {node for nest in nests for node in nest.nodes}
    outer, new = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        if node in by_result:
            nest = by_result[node]
            args = tuple(new[source] for source in nest.sources)
            _place_block(root, nest, args)
            label = nest.name.replace(".", "_")
            new[node] = outer.create_node("call_module", nest.name, args, {}, label)
            new[node].meta.update(owner=nest.name)
        elif node not in inside:
            new[node] = outer.node_copy(node, new.__getitem__)
    return outer


def _place_block(root: nn.Module, nest: _Nest, args: Sequence[Node]) -> None:
    """Registers the block as a module with relative names, whose inputs are named after `args`."""
    inner, prefix = Graph(), f"{nest.name}."
    new = {
        source: inner.placeholder(arg.name) for source, arg in zip(nest.sources, args, strict=True)
    }
    for node in nest.nodes:
        new[node] = inner.node_copy(node, new.__getitem__)
        if node.op in ("get_attr", "call_module"):
            new[node].target = str(node.target).removeprefix(prefix)
    inner.output(new[nest.result])
    holder = root.get_submodule(nest.name) if _has(root, nest.name) else nn.Module()
    place(root, nest.name, GraphModule(holder, inner, "Block"))
