"""Lifts a program into a network of ordinary modules. Layer: graph.

`build_network` gives a `torch.fx.GraphModule` with `nn.Conv2d`, `nn.BatchNorm2d` and so on under
the names of the source, so that hooks, `state_dict`, `train()` and exporters work as on any module.
In eval mode its outputs equal the program's bits.
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
"""Dotted name and the names of its nodes: contiguous in topological order, with one value that is
used outside.
"""


def build_network(program: Program, blocks: Iterable[BlockNodes] = ()) -> GraphModule:
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
    return _finished(root, _with_blocks(root, graph, _nestable(blocks, graph)))


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


@dataclass(frozen=True)
class _Nest:
    """The nodes of a block that can be a module of its own."""

    name: str
    nodes: tuple[Node, ...]
    """Its calls and its own tensors, in order."""
    result: Node
    """The one whose value is used outside."""

    @property
    def sources(self) -> tuple[Node, ...]:
        """The nodes outside that feed it."""
        inside = set(self.nodes)
        used = (source for node in self.nodes for source in node.all_input_nodes)
        return tuple(dict.fromkeys(source for source in used if source not in inside))


def _nestable(blocks: Iterable[BlockNodes], graph: Graph) -> list[_Nest]:
    """The blocks that hold exactly the modules and tensors under their own name."""
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
    """By dotted name: the module calls and tensors with this name or one below it."""
    below: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            for name in accumulate(str(node.target).split("."), "{}.{}".format):
                below.setdefault(name, []).append(node)
    return below


def _is_self_contained(name: str, calls: set[Node], below: dict[str, list[Node]]) -> bool:
    """Whether a block's calls are all that use what is below its name, and call no other module."""
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
    """A copy of the graph in which each block is one call of a nested module, placed in `root`
    under the block's name; the call stands where the block's result was computed.
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
    """Makes the block a module with relative names; it takes the values of `args`, under their
    names, for its sources."""
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
