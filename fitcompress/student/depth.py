"""Deepens a program: repeats its blocks and, if that is not enough, inserts residual layers.

Copies follow the last block of their stage, keep its axes, and get new weights and the next numbers
in the sequence of names. New residual branches start at zero, so that the deepened network
initially computes the same function.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import ceil

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fitcompress.graph.analysis.blocks import Block, find_blocks
from fitcompress.graph.analysis.costs import data_nodes, node_depths
from fitcompress.graph.axes.rules.layout import LAYOUT
from fitcompress.graph.names import TakenNames
from fitcompress.graph.program import Program, clone, operation, output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.student.new_layers import Insert, insert_norm, insert_residual, takes_residual

__all__ = ["Deepened", "deepen_program", "restore_norms"]

_COPIES_OF_EACH = 3
"""Maximum number of copies of a block per multiple of the depth; beyond it, layers are inserted."""
_DEPTH_TOLERANCE = 0.05
_MOVES = frozenset((*LAYOUT, "dropout", "alias", "clone", "contiguous", "pad"))
"""Operations that only move or pass on values."""
_NORMS = ("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm")
_LINEAR = _MOVES | {"linear", "conv1d", "conv2d", "conv3d", "add", "mul", "div", "mean", *_NORMS}
"""Operations whose composition is linear, except for the norms: repeating it adds no capacity."""


@dataclass(frozen=True)
class Deepened:
    """A deepened program; its new tensors are on the meta device."""

    program: Program
    origins: dict[str, str] = field(default_factory=dict)
    """The original of each copied tensor."""
    fresh: frozenset[str] = frozenset()
    """All new tensors."""
    zeroed: frozenset[str] = frozenset()
    """New tensors that start at zero because they end a residual branch."""
    identities: frozenset[str] = frozenset()
    """New square matrices that start as the identity."""


def deepen_program(program: Program, depth_mult: float) -> Deepened:
    """The program with about `depth_mult` times as many weighted contractions on its longest path.

    Each stage (consecutive blocks of one output shape) is deepened in proportion. Depth that a
    stage cannot take is passed on to the next; the rest is spread over the longest path as new
    residual layers.
    """
    deep = clone(program)
    blocks = find_blocks(deep)
    outputs = set(output_nodes(deep.graph))
    names = TakenNames(deep.tensors)
    inserts: list[Insert] = []
    missing = 0.0
    for _, stage in groupby(blocks, key=lambda block: block.shape):
        members = list(stage)
        missing += (depth_mult - 1) * sum(block.depth for block in members)
        units = [b for b in members if _is_repeatable(b) and b.tail not in outputs]
        copies = _choose_copies(units, missing, depth_mult)
        missing -= sum(unit.depth for unit in copies)
        if copies:
            inserts.extend(_append_copies(deep, units[-1].tail, copies, names))
    wanted = _depth(program) * depth_mult
    missing = wanted - _depth(deep)
    if missing > _DEPTH_TOLERANCE * wanted:
        inserts.extend(_spread_residuals(deep, round(missing), names))
    return _collect(deep, inserts)


def _depth(program: Program) -> int:
    depths = node_depths(program)
    return max(depths[node] for node in output_nodes(program.graph))


def _is_repeatable(block: Block) -> bool:
    """Whether a copy of the block can follow it and adds more than a linear map."""
    operations = {operation(node) for node in block.nodes} - {""}
    return block.preserves_shape and block.depth > 0 and not operations <= _LINEAR


def _choose_copies(units: Sequence[Block], missing: float, depth_mult: float) -> list[Block]:
    copies: list[Block] = []
    limit = _COPIES_OF_EACH * ceil(depth_mult - 1) * len(units)
    while len(copies) < limit:
        unit = units[len(copies) % len(units)]
        if missing < unit.depth / 2:
            break
        copies.append(unit)
        missing -= unit.depth
    return copies


def _append_copies(
    program: Program, tail: Node, copies: Sequence[Block], names: TakenNames
) -> list[Insert]:
    """Appends copies after `tail`; its users then read the last copy."""
    users = list(tail.users)
    inserts = []
    point = tail
    for block in copies:
        insert = _copy_block(program, block, point, names)
        program.tensors.update(insert.tensors)
        names.take(insert.tensors)
        inserts.append(insert)
        point = insert.output
    for user in users:
        user.replace_input_with(tail, point)
    return inserts


def _copy_block(program: Program, block: Block, point: Node, names: TakenNames) -> Insert:
    """Inserts a copy of the block after `point`, which it reads."""
    graph = point.graph
    renamed = names.next_keys(_module_keys(program, block))
    new: dict[Node, Node] = {block.head: point}
    tensors: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    last = point
    for node in block.nodes:
        if node.op == "get_attr" and not _is_copied(program, node):
            continue
        with graph.inserting_after(last):
            copy = graph.node_copy(node, lambda old: new.get(old, old))
        owner = str(node.meta.get("owner", ""))
        copy.meta["owner"] = _moved(f"{owner}.", renamed).removesuffix(".")
        if node.op == "get_attr":
            old = str(node.target)
            copy.target = _rename(old, renamed, names)
            origins[str(copy.target)] = old
            tensors[str(copy.target)] = torch.empty_like(program.tensors[old], device="meta")
        new[node] = last = copy
    trained = {name for name, old in origins.items() if old in program.trainable}
    zeroed = _branch_ends([new[n] for n in block.nodes if n in new], point)
    return Insert(new[block.tail], tensors, frozenset(trained), zeroed & trained, origins)


def _is_copied(program: Program, node: Node) -> bool:
    """Whether a tensor is a weight or statistic; tables (indices, masks) are shared by copies."""
    name = str(node.target)
    if name in program.trainable:
        return True
    return any(operation(user) in ("batch_norm", "instance_norm") for user in node.users)


def _module_keys(program: Program, block: Block) -> list[str]:
    """The named parts of the block, and the modules of weights outside these parts."""
    keys = list(block.keys)
    for node in block.nodes:
        name = str(node.target)
        inside = any(name.startswith(f"{key}.") for key in keys)
        if node.op == "get_attr" and "." in name and not inside and _is_copied(program, node):
            keys.append(name.rpartition(".")[0])
    return keys


def _rename(name: str, renamed: dict[str, str], taken: TakenNames) -> str:
    moved = _moved(name, renamed)
    return moved if moved != name else taken.free_name(name)


def _moved(name: str, renamed: dict[str, str]) -> str:
    """The name with its longest renamed prefix replaced; unchanged if it has none."""
    for key, new in sorted(renamed.items(), key=lambda item: -len(item[0])):
        if name.startswith(f"{key}."):
            return new + name[len(key) :]
    return name


def _branch_ends(nodes: Sequence[Node], head: Node) -> frozenset[str]:
    """The weights that make every residual branch among `nodes` vanish if they are zero."""
    trunk = {head}
    zeroed: set[str] = set()
    for node in nodes:
        if operation(node) == "add":
            ends = [source for source in node.all_input_nodes if source not in trunk]
            if len(ends) == 1 and len(node.all_input_nodes) == 2:
                trunk.add(node)
                zeroed |= _last_scale(ends[0], head)
        elif node.args and node.args[0] in trunk and operation(node) in _MOVES:
            trunk.add(node)
    return frozenset(zeroed)


def _last_scale(node: Node, head: Node) -> set[str]:
    """The last weights between `head` and `node`: of a norm, a layer scale or a linear layer."""
    while node is not head and node.op == "call_function":
        weights = [source for source in node.all_input_nodes if source.op == "get_attr"]
        if weights:
            affine = weights[:2] if operation(node) in _NORMS else weights
            return {str(weight.target) for weight in affine}
        node = node.all_input_nodes[0]
    return set()


def _spread_residuals(program: Program, count: int, names: TakenNames) -> list[Insert]:
    """Spreads residual layers evenly over the contractions of the longest path, except the last."""
    path = [node for node in _longest_path(program)[:-1] if takes_residual(program, node)]
    shapes = propagate_shapes(program, 2)
    inserts: list[Insert] = []
    for number in range(count if path else 0):
        node = path[number * len(path) // count] if count <= len(path) else path[number % len(path)]
        inserts.append(insert_residual(program, node, shapes, names))
        program.tensors.update(inserts[-1].tensors)
        names.take(inserts[-1].tensors)
    return inserts


def _longest_path(program: Program) -> list[Node]:
    """The weighted contractions on a longest path from input to output."""
    depths, data = node_depths(program), data_nodes(program)
    node = max(output_nodes(program.graph), key=depths.__getitem__)
    path = []
    while node.op != "placeholder":
        source = max(node.all_input_nodes, key=depths.__getitem__, default=None)
        if source is None:
            break
        if depths[node] > depths[source]:
            path.append(node)
        node = next(s for s in node.all_input_nodes if depths[s] == depths[source] and s in data)
    return path[::-1]


def restore_norms(program: Program) -> Deepened:
    """The program with a batch norm after each convolution if it has no norms, otherwise unchanged.

    Norms of frozen archives are folded into the convolutions; without norms a thin, deep student
    does not train.
    """
    if any(operation(node) in _NORMS for node in program.graph.nodes):
        return Deepened(program)
    plain = clone(program)
    outputs = set(output_nodes(plain.graph))
    convolutions = [
        node
        for node in plain.graph.nodes
        if re.fullmatch(r"conv\dd", operation(node))
        and node not in outputs
        and node.args[1].op == "get_attr"
    ]
    return _collect(plain, [insert_norm(plain, node) for node in convolutions])


def _collect(program: Program, inserts: Sequence[Insert]) -> Deepened:
    tensors = dict(program.tensors)
    trainable, zeroed = set(program.trainable), set[str]()
    origins: dict[str, str] = {}
    fresh: set[str] = set()
    for insert in inserts:
        tensors.update(insert.tensors)
        trainable |= insert.trainable
        zeroed |= insert.zeroed
        origins.update(insert.origins)
        fresh |= set(insert.tensors)
    graph: Graph = program.graph
    graph.lint()
    deep = Program(graph, tensors, frozenset(trainable), program.inputs)
    return Deepened(deep, origins, frozenset(fresh), frozenset(zeroed))
