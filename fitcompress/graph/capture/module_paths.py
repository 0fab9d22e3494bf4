"""Infers which module of a TorchScript archive made each call, from the names of weights.

A recording of an archive has the names of weights, but not the module that made a call. As a
heuristic, a convolution belongs to its weight's module, a sum to the innermost module that contains
the branches it joins, and other calls to the module of their neighbors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.graph.analysis.blocks import find_blocks
from fitcompress.graph.names import common_path
from fitcompress.graph.program import (
    WEIGHT_ARGUMENTS,
    Program,
    clone,
    copy_graph,
    output_nodes,
)
from fitcompress.graph.shapes import propagate_shapes

__all__ = ["infer_owners", "name_by_use"]

_MIN_LOOSE_WEIGHT = 8
"""A heuristic for frozen archives, which do not tell weights from constants: an unnamed float
tensor in elementwise arithmetic counts as trained if it has at least this many elements. A smaller
one is usually the mean or the standard deviation of the input channels.
"""


def name_by_use(program: Program) -> Program:
    """Names unnamed tensors (of frozen archives) after the calls that use them, with the number of
    their block in front if no tensor has a name. Nothing is modified.

    Tensors used as weights become trainable, and so do float tables, except masks (with two
    distinct values) and tiny ones.
    """
    has_no_names = all(map(_is_unnamed, program.tensors))
    named = _unpooled(program)
    renamed: dict[str, str] = {}
    trainable = set(program.trainable)
    for node in named.graph.nodes:
        for role, source in _unnamed_tensors(node):
            old = str(source.target)
            if old in renamed:
                continue
            value = named.tensors[old]
            is_weight = role in WEIGHT_ARGUMENTS and value.is_floating_point()
            renamed[old] = f"{node.name}.{role}" if is_weight else old
            if (is_weight and not role.startswith("running")) or _is_table(value):
                trainable.add(old)
    named = _renamed(replace(named, trainable=frozenset(trainable)), renamed)
    return _renamed(named, _names_by_block(named)) if has_no_names else named


def _unpooled(program: Program) -> Program:
    """A copy in which calls do not share constant vectors as weights. Freezing an archive merges
    equal constants, so that all newly initialized norms and zero biases appear tied.
    """
    parted = clone(program)
    taken: set[Node] = set()
    for node in list(parted.graph.nodes):
        for index, source in _unnamed_weights(node):
            value = parted.tensors[str(source.target)]
            if source in taken and value.ndim == 1 and bool((value == value[:1]).all()):
                own = f"{source.target}_of_{node.name}_{index}"
                parted.tensors[own] = value.clone()
                with parted.graph.inserting_before(node):
                    new = parted.graph.create_node("get_attr", own)
                new.meta.update(source.meta)
                node.update_arg(index, new)
            taken.add(source)
    return parted


def _unnamed_weights(node: Node) -> Iterable[tuple[int, Node]]:
    """(argument index, source) for each unnamed tensor that a call takes as a weight."""
    if not isinstance(node.target, OpOverload):
        return
    roles = [argument.name for argument in node.target._schema.arguments]
    for index, (role, source) in enumerate(zip(roles, node.args, strict=False)):
        if role not in WEIGHT_ARGUMENTS or not isinstance(source, Node):
            continue
        if source.op == "get_attr" and _is_unnamed(str(source.target)):
            yield index, source


def _names_by_block(program: Program) -> dict[str, str]:
    """New names `blocks.<number>.<name>` for the tensors in blocks on the spine. The first block
    and the one that computes the output (the stem and the head of most networks) get none.
    """
    ends = output_nodes(program.graph)
    inner = [block for block in find_blocks(program)[1:] if block.tail not in ends]
    names: dict[str, str] = {}
    for number, block in enumerate(inner):
        for node in block.nodes:
            if node.op == "get_attr":
                names.setdefault(str(node.target), f"blocks.{number}.{node.target}")
    return names


def _renamed(program: Program, names: Mapping[str, str]) -> Program:
    """The program with some of its tensors renamed."""
    graph, _ = copy_graph(program.graph)
    for node in graph.nodes:
        if node.op == "get_attr":
            node.target = names.get(str(node.target), node.target)
    tensors = {names.get(name, name): value for name, value in program.tensors.items()}
    trainable = frozenset(names.get(name, name) for name in program.trainable)
    return Program(graph, tensors, trainable, program.inputs)


def _unnamed_tensors(node: Node) -> Iterable[tuple[str, Node]]:
    """(argument, source) for each unnamed tensor that a call takes."""
    if not isinstance(node.target, OpOverload):
        return
    names = [argument.name for argument in node.target._schema.arguments]
    for name, value in [*zip(names, node.args, strict=False), *node.kwargs.items()]:
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Node) and item.op == "get_attr" and _is_unnamed(str(item.target)):
                yield name, item


def _is_unnamed(name: str) -> bool:
    return name.rpartition(".")[2].startswith("constant_")


def _is_table(value: Tensor) -> bool:
    is_large = value.is_floating_point() and value.numel() >= _MIN_LOOSE_WEIGHT
    return is_large and not value.is_meta and value.flatten()[:4096].unique().numel() != 2


def infer_owners(program: Program) -> Program:
    """The program with the owner of every call inferred from the names of weights. Nothing is
    modified.
    """
    owned = clone(program)
    shapes = propagate_shapes(program)
    nodes = [node for node in owned.graph.nodes if node.op == "call_function"]
    reach = _weights_on_the_way(nodes)
    following = _next_weight_owners(nodes)
    for index, node in enumerate(nodes):
        own = _weight_owner(node)
        node.meta["owner"] = own or _guess(node, shapes, reach, following[index])
    for node in reversed(nodes):
        node.meta["owner"] = node.meta["owner"] or _owner_of_only_user(node)
    return owned


def _owner_of_only_user(node: Node) -> str:
    """The module of the only user, for a call without an owner (a shortcut without weights)."""
    if len(node.users) != 1:
        return ""
    (user,) = node.users
    owner = str(user.meta.get("owner", ""))
    return owner.rpartition(".")[0] if _weight_owner(user) else owner


def _weight_owner(node: Node) -> str:
    """The module of the weights that a call takes directly."""
    sources = [n for n in node.all_input_nodes if n.op == "get_attr" and "." in str(n.target)]
    return common_path(str(n.target).rpartition(".")[0] for n in sources)


def _guess(node: Node, shapes: Mapping[str, Any], reach: Mapping[Node, Any], after: str) -> str:
    sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
    if not sources:
        return ""
    if len(sources) > 1:
        return common_path(_branch_owners(sources, reach))
    (source,) = sources
    before = str(source.meta.get("owner", ""))
    if _weight_owner(source):
        before = before.rpartition(".")[0]
    if shapes[node.name] == shapes[source.name]:
        return before
    return common_path([before, after])


def _branch_owners(sources: Iterable[Node], reach: Mapping[Node, frozenset[str]]) -> set[str]:
    """The owners of the weights between a fork and the node where the branches join again."""
    sets = [reach[source] for source in sources if source in reach]
    shared = frozenset.intersection(*sets) if sets else frozenset()
    return set().union(*(found - shared for found in sets))


def _weights_on_the_way(nodes: Iterable[Node]) -> dict[Node, frozenset[str]]:
    """For each call, the owners of all weights that its value depends on."""
    reach: dict[Node, frozenset[str]] = {}
    for node in nodes:
        found = frozenset().union(
            *(reach.get(source, frozenset()) for source in node.all_input_nodes)
        )
        owner = _weight_owner(node)
        reach[node] = found | {owner} if owner else found
    return reach


def _next_weight_owners(nodes: list[Node]) -> list[str]:
    """For each call, the module of the next call that takes a weight."""
    following, owner = [""] * len(nodes), ""
    for index in reversed(range(len(nodes))):
        following[index] = owner
        owner = _weight_owner(nodes[index]) or owner
    return following
