"""The spine of a network and the blocks on it.

The *spine* is the chain of nodes that all data from the inputs to the outputs flows through. A
*segment* is what lies between two neighbors on it. Segments are grouped into *blocks*: a block
starts at a segment with weights and extends over segments without weights and those whose weights
lie in the same numbered module. A block whose output has the shape of its input can be repeated.

The graph does not tell where a block ends, so two heuristics decide it. Both change only which
layers are grouped and how they are named, never what the network computes:

- Names: weights below one numbered module (`layer1.2`, `blocks.0`) belong to one block
  (`_common_key`).
- Repetition: up to `_LONGEST_PERIOD` neighboring blocks that repeat in the same order (attention,
  MLP, attention, MLP) are one block, since the names alone may not say so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.graph.analysis.costs import data_nodes, is_weighted, node_depths
from fitcompress.graph.lift import BlockNodes
from fitcompress.graph.names import common_path
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["Block", "find_blocks", "node_blocks", "spine_nodes"]

_LONGEST_PERIOD = 4
"""A heuristic: at most this many neighboring blocks are merged because they repeat together. Two
(attention and MLP) are common; longer periods are more likely to be a coincidence."""


@dataclass(frozen=True)
class Block:
    """Consecutive segments that belong together, with one input and one output on the spine."""

    name: str
    """The dotted path of the module that computes its output, or `block<number>` without names."""
    parts: tuple[tuple[str, tuple[Node, ...]], ...]
    """The named modules that it consists of, in order, each with its nodes."""
    head: Node
    """The spine node that is its input."""
    nodes: tuple[Node, ...]
    """Its nodes in order, including weights; the last is its output."""
    shape: tuple[int, ...]
    """The output's shape without the batch."""
    signature: tuple[Any, ...]
    """Equal for blocks that compute the same with different weights."""
    depth: int
    """Weighted contractions on its longest path."""
    depth_end: int
    """Weighted contractions on the longest path from the network's input to its output."""
    preserves_shape: bool
    segments: tuple[_Segment, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted prefix of each named part's weights."""
        return tuple(key for key, _ in self.parts)

    @property
    def tail(self) -> Node:
        """The node that computes the block's output."""
        return self.nodes[-1]


@dataclass(frozen=True)
class _Segment:
    head: Node
    nodes: tuple[Node, ...]
    shape: tuple[int, ...]
    head_shape: tuple[int, ...]
    is_weighted: bool
    key: str
    signature: tuple[Any, ...]


def spine_nodes(program: Program, shapes: dict[str, Shape]) -> list[Node]:
    """The nodes, in order, that every path from an input to an output passes through.

    Only values that depend on an input are on a path; weights and arithmetic on sizes are not.
    """
    data = _data_nodes(program, shapes)
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    outputs = set(output_nodes(program.graph))
    end = len(order)
    furthest = max(order[node] for node in data if node.op == "placeholder")
    spine = []
    for node in data:
        index = order[node]
        if furthest <= index and _is_tensor(shapes[node.name]):
            spine.append(node)
        last_use = max(
            (order[user] for user in node.users if user in order and user in data), default=index
        )
        furthest = max(furthest, end if node in outputs and len(outputs) > 1 else last_use)
    return spine


def _data_nodes(program: Program, shapes: dict[str, Shape]) -> dict[Node, None]:
    """The nodes between an input and an output, in order."""
    from_input: set[Node] = set()
    for node in program.graph.nodes:
        is_data = node.op == "placeholder" or any(
            source in from_input for source in node.all_input_nodes
        )
        if is_data and node.op != "output" and isinstance(shapes[node.name], tuple):
            from_input.add(node)
    needed = set(output_nodes(program.graph))
    for node in reversed(program.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    return {node: None for node in program.graph.nodes if node in from_input and node in needed}


def _is_tensor(shape: Shape) -> bool:
    return isinstance(shape, tuple) and not (shape and isinstance(shape[0], tuple))


def find_blocks(program: Program) -> list[Block]:
    """The blocks on the spine, in execution order."""
    shapes = propagate_shapes(program, 2)
    segments = _find_segments(program, shapes)
    depths = node_depths(program)
    cells = _merge_periods(_trim_tails(list(_group_segments(segments))))
    taken: set[str] = set()
    blocks = []
    for number, cell in enumerate(cells):
        block = _make_block(cell, depths, number)
        name = block.name
        while name in taken:
            name += "_"
        taken.add(name)
        blocks.append(replace(block, name=name))
    return blocks


def _find_segments(program: Program, shapes: dict[str, Shape]) -> list[_Segment]:
    spine = spine_nodes(program, shapes)
    order = list(program.graph.nodes)
    place = {node: index for index, node in enumerate(order)}
    data = data_nodes(program)
    segments = []
    for head, tail in pairwise(spine):
        nodes = _with_weights(order[place[head] + 1 : place[tail] + 1], head, place)
        tensors = [str(node.target) for node in nodes if node.op == "get_attr"]
        names = [name for name in tensors if name in program.trainable]
        segments.append(
            _Segment(
                head,
                nodes,
                tuple(shapes[tail.name][1:]),
                tuple(shapes[head.name][1:]),
                any(is_weighted(node, data) for node in nodes),
                _common_key(names),
                _signature(head, nodes, shapes),
            )
        )
    return segments


def _with_weights(calls: Sequence[Node], head: Node, place: Mapping[Node, int]) -> tuple[Node, ...]:
    """The calls, preceded by the weights that they use."""
    inside = dict.fromkeys(node for node in calls if node.op == "call_function")
    sources = (source for call in inside for source in call.all_input_nodes)
    weights = {source for source in sources if source.op == "get_attr" and source is not head}
    return (*sorted(weights, key=place.__getitem__), *inside)


def _common_key(names: Sequence[str]) -> str:
    """A heuristic: the longest common module path of weights, cut after its last number. The author
    numbers what repeats, so `blocks.0` is a block and `blocks.0.mlp` a part of it.
    """
    shared = common_path(name.rpartition(".")[0] for name in names).split(".")
    numbered = [index for index, part in enumerate(shared) if part.isdigit()]
    return ".".join(shared[: numbered[-1] + 1] if numbered else shared)


def _signature(head: Node, nodes: Sequence[Node], shapes: dict[str, Shape]) -> tuple[Any, ...]:
    """What the segment computes, with weights replaced by their shapes."""
    number = {head: -1, **{node: index for index, node in enumerate(nodes)}}

    def encode(value: Any) -> Any:
        if isinstance(value, Node):
            return ("node", number.get(value, "outside"))
        if isinstance(value, (list, tuple)):
            return tuple(map(encode, value))
        return str(value)

    def describe(node: Node) -> Any:
        if node.op == "get_attr":
            return ("weight", shapes[node.name])
        return (str(node.target), encode(node.args), encode(sorted(node.kwargs.items())))

    return tuple(map(describe, nodes))


def _group_segments(segments: Sequence[_Segment]) -> Iterator[list[_Segment]]:
    """Runs of segments, each starting at a weighted one outside the module of the run before."""
    run: list[_Segment] = []
    for segment in segments:
        starts = segment.is_weighted and not (run and segment.key and segment.key == run[0].key)
        if starts and run:
            yield run
            run = []
        if segment.is_weighted or run:
            run.append(segment)
    if run:
        yield run


def _trim_tails(cells: list[list[_Segment]]) -> list[list[_Segment]]:
    """Cut off trailing segments that do not belong to a block: those named after another module,
    those after the last output of the input's shape, and those that a recent block which is
    otherwise identical does not have.
    """
    trimmed: list[list[_Segment]] = []
    for cell in cells:
        last = max(index for index, s in enumerate(cell) if s.is_weighted)
        behind = range(last, len(cell))
        end = next((i for i in behind if _is_elsewhere(cell[i].key, cell[last].key)), len(cell))
        back = [i + 1 for i in range(last, end) if cell[i].shape == cell[0].head_shape]
        length = max(back, default=end)
        recent = trimmed[: -_LONGEST_PERIOD - 1 : -1]
        alike = next((len(before) for before in recent if _begins_like(cell, before)), length)
        trimmed.append(cell[:alike])
    return trimmed


def _is_elsewhere(key: str, other: str) -> bool:
    """Whether two named modules have different parents, such as `norm` and `blocks.11`."""
    return bool(key and other) and key.rpartition(".")[0] != other.rpartition(".")[0]


def _begins_like(cell: Sequence[_Segment], before: Sequence[_Segment]) -> bool:
    """Whether the cell is a copy of the one before followed by more, unless the next segment is an
    activation, which makes it another kind of block."""
    begins = [segment.signature for segment in cell[: len(before)]]
    more = cell[len(before) : len(before) + 1]
    return begins == [segment.signature for segment in before] and not any(map(_is_pointwise, more))


def _is_pointwise(segment: _Segment) -> bool:
    targets = [node.target for node in segment.nodes]
    return all(isinstance(t, OpOverload) and torch.Tag.pointwise in t.tags for t in targets)


def _merge_periods(cells: list[list[_Segment]]) -> list[list[_Segment]]:
    """Merge neighboring cells that repeat in the same order."""
    signatures = [tuple(s.signature for s in cell) for cell in cells]
    joined = [cell[-1].nodes[-1] is following[0].head for cell, following in pairwise(cells)]
    merged: list[list[_Segment]] = []
    index = 0
    while index < len(cells):
        period, repeats = _period_at(signatures, joined, index)
        merged.extend(
            [segment for cell in cells[start : start + period] for segment in cell]
            for start in range(index, index + period * repeats, period)
        )
        index += period * repeats
    return merged


def _period_at(signatures: list[Any], joined: list[bool], index: int) -> tuple[int, int]:
    """The shortest period, above one, with which cells repeat from `index` on, and the number of
    repeats; (1, 1) if they do not."""
    if signatures[index : index + 1] == signatures[index + 1 : index + 2]:
        return 1, 1
    for period in range(2, _LONGEST_PERIOD + 1):
        unit, repeats = signatures[index : index + period], 1
        while signatures[index + repeats * period : index + (repeats + 1) * period] == unit and all(
            joined[index : index + (repeats + 1) * period - 1]
        ):
            repeats += 1
        if repeats > 1:
            return period, repeats
    return 1, 1


def _make_block(cell: Sequence[_Segment], depths: dict[Node, int], number: int) -> Block:
    parts = _parts(cell)
    keys = [key for key, _ in parts]
    nodes = tuple(dict.fromkeys(node for segment in cell for node in segment.nodes))
    return Block(
        name=keys[-1] if keys else f"block{number}",
        parts=parts,
        head=cell[0].head,
        nodes=nodes,
        shape=cell[-1].shape,
        signature=tuple(segment.signature for segment in cell),
        depth=depths[cell[-1].nodes[-1]] - depths[cell[0].head],
        depth_end=depths[cell[-1].nodes[-1]],
        preserves_shape=cell[-1].shape == cell[0].head_shape,
        segments=tuple(cell),
    )


def _parts(cell: Sequence[_Segment]) -> tuple[tuple[str, tuple[Node, ...]], ...]:
    """The nodes by the module of their weights; segments without weights join the part before."""
    found: dict[str, list[Node]] = {}
    key = ""
    for segment in cell:
        key = segment.key if segment.is_weighted and segment.key else key
        if key:
            found.setdefault(key, []).extend(segment.nodes)
    return tuple((key, tuple(dict.fromkeys(nodes))) for key, nodes in found.items())


def node_blocks(blocks: Sequence[Block]) -> tuple[BlockNodes, ...]:
    """The named parts of blocks with the names of their nodes, as `build_network` takes them."""
    return tuple(
        (key, tuple(node.name for node in nodes)) for block in blocks for key, nodes in block.parts
    )
