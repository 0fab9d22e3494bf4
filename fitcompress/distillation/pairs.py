"""Choice of the hint pairs: teacher layers, and the student layers that they guide.

The rule of the paper: the middle of the teacher guides the middle of the student (FitNets, section
2.2). A student derived from its teacher has the same stages, so if a stage ends near the middle,
its last layers are paired.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import log2, prod

from torch.fx import GraphModule

from fitcompress.errors import PlanError
from fitcompress.graph.analysis.blocks import Block, find_blocks, node_blocks
from fitcompress.graph.analysis.costs import node_depths
from fitcompress.graph.axes.algebra import Sum
from fitcompress.graph.axes.trace import AxisTrace, trace_axes
from fitcompress.graph.cut import resolve_layer
from fitcompress.graph.leaves import find_leaves
from fitcompress.graph.lift import BlockNodes
from fitcompress.graph.program import Program, named_arguments, operation, output_nodes
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["HintPair", "Layer", "LayerMap", "choose_pairs", "map_layers"]

_NEAR_THE_MIDDLE = 0.1
"""Largest distance of a stage's end from the middle, as a share of the depth, at which it is
preferred over the block in the middle."""

_POSITIONS_WEIGHT = 0.1
"""Heuristic for networks with different stages: share of the depth that a factor of two in the
number of positions is worth."""

_NON_NEGATIVE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "softplus"))
_KEEPS_SIGN = frozenset(
    ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout", "flatten", "view", "reshape")
)


@dataclass(frozen=True)
class Layer:
    """A layer that a forward hook can record."""

    name: str
    kind: str
    shape: tuple[int, ...]
    """Shape of the output, without the batch."""
    depth_share: float
    """Weighted contractions up to the layer, as a share of the network's."""
    candidate: bool
    """Whether the layer ends a block on the spine, and may be paired."""
    node: str
    """The program's node of the output."""
    stage: int = -1
    """For candidates: the number of the stage (blocks of one output shape)."""


@dataclass(frozen=True)
class LayerMap:
    """The layers of a network in execution order, and the axes of their values."""

    program: Program
    layers: tuple[Layer, ...]
    spine: tuple[Block, ...]
    blocks: tuple[BlockNodes, ...]
    """The blocks on the spine, for `build_network`."""
    trace: AxisTrace

    @property
    def candidates(self) -> tuple[Layer, ...]:
        """The layers that may be paired."""
        return tuple(layer for layer in self.layers if layer.candidate)


@dataclass(frozen=True)
class HintPair:
    """A hint and the guided layer."""

    hint: Layer
    guided: Layer
    hint_channel_axis: int | None
    """Counted without the batch; None if the graph does not tell."""
    guided_channel_axis: int | None
    hint_grid: tuple[int, ...] | None
    """Grid of the last tokens of a sequence, after any class tokens; None if the graph does not
    tell."""
    guided_grid: tuple[int, ...] | None
    is_non_negative: bool
    """Whether the hint has no negative values."""


def map_layers(
    program: Program,
    network: GraphModule,
    trace: AxisTrace | None = None,
    blocks: Sequence[Block] = (),
) -> LayerMap:
    """The layers of `network`, which was built from `program`. Runs nothing: the output of a layer
    is the value of a node.

    Args:
        trace: the axes of a program with all nodes of this one; computed if None.
        blocks: the blocks of the program; computed if empty.
    """
    spine = tuple(blocks or find_blocks(program))
    parts = node_blocks(spine)
    shapes = propagate_shapes(program)
    stages = _stages(program, spine)
    ends = {name: nodes[-1] for name, nodes in parts}
    found = _leaf_layers(program, shapes, stages)
    nested = _nested_blocks(network)
    for name, node in ends.items():
        if name not in found and (node in stages or name in nested):
            shape, stage = tuple(shapes[node][1:]), stages.get(node, -1)
            found[name] = Layer(name, "Block", shape, 0, node in stages, node, stage)
    layers = _with_fallback_candidates(_in_order(program, found.values()), ends, stages)
    return LayerMap(program, layers, spine, parts, trace or trace_axes(program))


def _leaf_layers(
    program: Program, shapes: Mapping[str, Shape], stages: Mapping[str, int]
) -> dict[str, Layer]:
    """The modules of single calls, by name. A module that is called several times has the node of
    its last call and the shape of its first output.
    """
    found: dict[str, Layer] = {}
    for node, leaf in find_leaves(program).items():
        first = found.get(leaf.path)
        shape = first.shape if first else tuple(shapes[node.name][1:])
        stage = stages.get(node.name, -1)
        found[leaf.path] = Layer(leaf.path, leaf.kind, shape, 0, False, node.name, stage)
    return found


def _nested_blocks(network: GraphModule) -> set[str]:
    """The names of blocks that are modules; other blocks share leaves and stay flat."""
    modules = network.named_modules()
    return {name for name, module in modules if name and isinstance(module, GraphModule)}


def _in_order(program: Program, layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers in execution order, with their shares of the depth."""
    places = {node.name: place for place, node in enumerate(program.graph.nodes)}
    depths = {node.name: depth for node, depth in node_depths(program).items()}
    total = max(depths[node.name] for node in output_nodes(program.graph)) or 1
    ordered = sorted(layers, key=lambda layer: places[layer.node])
    return tuple(replace(layer, depth_share=depths[layer.node] / total) for layer in ordered)


def _stages(program: Program, blocks: Sequence[Block]) -> dict[str, int]:
    """The stage number of each block's output node, except for outputs of the network."""
    outputs = set(output_nodes(program.graph))
    numbered = enumerate(groupby(blocks, key=lambda block: block.shape))
    return {
        block.tail.name: number
        for number, (_, members) in numbered
        for block in members
        if block.tail not in outputs
    }


def _with_fallback_candidates(
    layers: tuple[Layer, ...], ends: dict[str, str], stages: dict[str, int]
) -> tuple[Layer, ...]:
    """If no layer is a candidate, the modules with the names of blocks become candidates; without
    any, all layers but the last.
    """
    if any(layer.candidate for layer in layers):
        return layers
    named = {layer.name for layer in layers if ends.get(layer.name) in stages}
    allowed = named or {layer.name for layer in layers[:-1]}
    return tuple(
        replace(
            layer, candidate=layer.name in allowed, stage=stages.get(ends.get(layer.name, ""), 0)
        )
        for layer in layers
    )


def choose_pairs(
    teacher: LayerMap,
    student: LayerMap,
    *,
    num_pairs: int = 1,
    hints: Sequence[str] = (),
    guided: Sequence[str] = (),
) -> tuple[HintPair, ...]:
    """The hint pairs, in order of depth.

    Args:
        num_pairs: number of pairs, spread evenly over the depth, if no layers are named.
        hints: names of teacher layers; if empty, they are chosen to match `guided`.
        guided: names of student layers; if empty, they are chosen to match `hints`.

    Raises:
        LayerError: a name is unknown or ambiguous.
        PlanError: there are no layers to pair.
    """
    if not teacher.candidates or not student.candidates:
        raise PlanError(
            "choosing hint and guided layers: found no layer between input and output",
            code="hint-layer-missing",
            advice="Name the layers with --hint and --guided.",
        )
    if hints and guided:
        pairs = list(zip(_named(teacher, hints), _named(student, guided), strict=True))
    elif hints:
        pairs = [(hint, _match(hint, teacher, student)) for hint in _named(teacher, hints)]
    elif guided:
        pairs = [(_match(layer, student, teacher), layer) for layer in _named(student, guided)]
    else:
        places = [number / (num_pairs + 1) for number in range(1, num_pairs + 1)]
        pairs = list(dict.fromkeys(_pair_at(place, teacher, student) for place in places))
    return tuple(_make_pair(hint, layer, teacher, student) for hint, layer in pairs)


def _named(side: LayerMap, names: Sequence[str]) -> list[Layer]:
    return [_named_layer(side, name) for name in names]


def _named_layer(side: LayerMap, name: str) -> Layer:
    known = {layer.name: layer for layer in side.layers}
    if name in known:
        return known[name]
    node = resolve_layer(side.program, name, side.blocks)
    ends = {layer.node: layer for layer in side.candidates}
    if node in ends:
        return replace(ends[node], name=name)
    depths = {other.name: depth for other, depth in node_depths(side.program).items()}
    total = max(depths[output.name] for output in output_nodes(side.program.graph)) or 1
    shape = tuple(propagate_shapes(side.program)[node][1:])
    return Layer(name, "Value", shape, depths[node] / total, False, node)


def _pair_at(place: float, teacher: LayerMap, student: LayerMap) -> tuple[Layer, Layer]:
    """The ends of the stage that ends near `place`, otherwise the blocks at `place`."""
    ends = _stage_ends(teacher)
    near = min(ends, key=lambda layer: abs(layer.depth_share - place))
    if _same_stages(teacher, student) and abs(near.depth_share - place) <= _NEAR_THE_MIDDLE:
        return near, _match(near, teacher, student)
    hint = min(teacher.candidates, key=lambda layer: abs(layer.depth_share - place))
    return hint, _match(hint, teacher, student)


def _stage_ends(side: LayerMap) -> list[Layer]:
    return list({layer.stage: layer for layer in side.candidates}.values())


def _same_stages(one: LayerMap, other: LayerMap) -> bool:
    """Whether both networks have equally many stages, with the same numbers of positions."""
    counts = [[_positions(layer, side) for layer in _stage_ends(side)] for side in (one, other)]
    return counts[0] == counts[1]


def _match(layer: Layer, own: LayerMap, other: LayerMap) -> Layer:
    """The layer of the other network at the place of `layer` in its own."""
    if _same_stages(own, other):
        places = {end.stage: number for number, end in enumerate(_stage_ends(own))}
        ends = _stage_ends(other)
        if layer.node in {end.node for end in _stage_ends(own)}:
            return ends[places[layer.stage]]
    positions = max(1, _positions(layer, own))

    def distance(candidate: Layer) -> float:
        ratio = max(1, _positions(candidate, other)) / positions
        return abs(candidate.depth_share - layer.depth_share) + _POSITIONS_WEIGHT * abs(log2(ratio))

    return min(other.candidates, key=distance)


def _positions(layer: Layer, side: LayerMap) -> int:
    """The number of positions (pixels, tokens) of a layer's output."""
    axis = _channel_axis(side, layer)
    if axis is None:
        return prod(layer.shape[1:])
    return prod(layer.shape[:axis]) * prod(layer.shape[axis + 1 :])


def _channel_axis(side: LayerMap, layer: Layer) -> int | None:
    """The only dimension whose size does not follow from the input; without the batch."""
    algebra = side.trace.algebra
    axes = side.trace.values[layer.node][1:]
    chosen = [
        dim
        for dim, axis in enumerate(axes)
        if any(not algebra.frozen_reason(atom) for atom in algebra.atoms(axis))
    ]
    return chosen[0] if len(chosen) == 1 else None


def _make_pair(hint: Layer, guided: Layer, teacher: LayerMap, student: LayerMap) -> HintPair:
    return HintPair(
        hint,
        guided,
        _channel_axis(teacher, hint),
        _channel_axis(student, guided),
        _token_grid(teacher, hint),
        _token_grid(student, guided),
        _is_non_negative(teacher.program, hint.node),
    )


def _token_grid(side: LayerMap, layer: Layer) -> tuple[int, ...] | None:
    """The grid that the first axis of tokens (L, D) was flattened from. With class or register
    tokens that axis is a sum, whose last term are the positions.
    """
    algebra = side.trace.algebra
    places = algebra.normal(side.trace.values[layer.node][1])
    while len(places) == 1 and isinstance(places[0], Sum):
        places = places[0].terms[-1]
    sizes = tuple(algebra.size((factor,)) for factor in places)
    rank = max(1, len(side.program.inputs[0].shape) - 1)
    return sizes if len(layer.shape) == 2 and len(sizes) == rank else None


def _is_non_negative(program: Program, name: str) -> bool:
    node = next(node for node in program.graph.nodes if node.name == name)
    while operation(node) in _KEEPS_SIGN:
        node = node.all_input_nodes[0]
    if operation(node) in ("hardtanh", "clamp", "clamp_min"):
        floor = named_arguments(node)["min_val" if operation(node) == "hardtanh" else "min"]
        return isinstance(floor, (int, float)) and floor >= 0
    return operation(node) in _NON_NEGATIVE
