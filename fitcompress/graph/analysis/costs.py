"""The costs of a program (parameters, multiply-adds, depth), computed from shapes alone."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg

from fitcompress.graph.axes.rules.contractions import CONTRACTIONS, RECURRENT
from fitcompress.graph.program import Program, operation, output_nodes
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = [
    "COUNTED_BATCH",
    "Costs",
    "count_macs",
    "data_nodes",
    "is_contraction",
    "is_weighted",
    "measure_costs",
    "node_depths",
]

COUNTED_BATCH = 3
"""The batch size at which multiply-adds are counted and planned students are verified: not 1, which
has special cases, and not one at which graphs are captured or traced.
"""


@dataclass(frozen=True)
class Costs:
    """The costs of a network for one sample."""

    params: int
    """Elements of trained tensors."""
    macs: int
    """Multiply-adds of convolutions, linear layers, matrix products and attention."""
    depth: int
    """Weighted contractions (convolution, linear) on the longest path."""

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-add, as in torch's `FlopCounterMode`."""
        return 2 * self.macs

    def to_dict(self) -> dict[str, int]:
        """`params`, `macs`, `depth` and `flops`."""
        return {**asdict(self), "flops": self.flops}


def measure_costs(program: Program) -> Costs:
    """The costs of the program for one sample."""
    params = sum(program.tensors[name].numel() for name in program.trainable)
    depths = node_depths(program)
    depth = max(depths[node] for node in output_nodes(program.graph))
    return Costs(params, count_macs(program), depth)


def count_macs(program: Program) -> int:
    """Multiply-adds for one sample."""
    shapes = propagate_shapes(program, COUNTED_BATCH)
    counts = [node_macs(node, shapes) for node in program.graph.nodes if is_contraction(node)]
    return sum(counts) // COUNTED_BATCH


def is_contraction(node: Node) -> bool:
    """Whether the call sums products over an axis."""
    return operation(node) in CONTRACTIONS and operation(node) != "embedding"


def is_weighted(node: Node, data: AbstractSet[Node]) -> bool:
    """Whether the call is a contraction with a weight.

    data: the `data_nodes` of its program.
    """
    return _may_be_weighted(node) and any(source not in data for source in node.all_input_nodes)


def _may_be_weighted(node: Node) -> bool:
    """Attention is not a layer, although its mask may be a tensor of the network."""
    return is_contraction(node) and operation(node) != "scaled_dot_product_attention"


def data_nodes(program: Program) -> set[Node]:
    """The nodes whose values depend on an input."""
    data: set[Node] = set()
    for node in program.graph.nodes:
        if node.op == "placeholder" or not data.isdisjoint(node.all_input_nodes):
            data.add(node)
    return data


def node_macs(node: Node, shapes: dict[str, Shape]) -> int:
    name, result = operation(node), shapes[node.name]
    inputs = _input_shapes(node, shapes)
    if "conv" in name:
        weight = inputs[1]
        places = inputs[0][2:] if "transpose" in name else result[2:]
        return int(result[0] * prod(places) * prod(weight))
    if name in RECURRENT:
        matrices = [shape for shape in inputs[1:] if len(shape) == 2]
        return int(prod(inputs[0][:-1]) * sum(map(prod, matrices)))
    if name == "scaled_dot_product_attention":
        query, key, value = inputs[:3]
        return int(prod(result[:-1]) * key[-2] * (query[-1] + value[-1]))
    return int(prod(result) * _summed(name, node, inputs))


def _input_shapes(node: Node, shapes: dict[str, Shape]) -> list[Shape]:
    """The shapes of the arguments in order, with repetitions."""
    found: list[Shape] = []
    map_arg(node.args, lambda source: found.append(shapes[source.name]))
    return found


def _summed(name: str, node: Node, inputs: list[Any]) -> int:
    """The number of products that are summed in each element of the result."""
    if name == "einsum":
        return _einsum_summed(node, inputs)
    first = 1 if name in ("addmm", "baddbmm") else 0
    return int(inputs[first][-1])


def _einsum_summed(node: Node, inputs: list[Any]) -> int:
    terms, arrow, output = str(node.args[0]).replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms.split(","), inputs, strict=True):
        before, _, after = term.partition("...")
        sizes.update(zip(before, shape, strict=False))
        sizes.update(zip(after, shape[len(shape) - len(after) :], strict=True))
    if not arrow:
        output = "".join(letter for letter in sizes if terms.count(letter) == 1)
    return prod(size for letter, size in sizes.items() if letter not in output)


def node_depths(program: Program) -> dict[Node, int]:
    """For each node, the largest number of weighted contractions on a path from an input to it,
    inclusive."""
    data = data_nodes(program)
    depths: dict[Node, int] = {}
    for node in program.graph.nodes:
        before = max((depths[source] for source in node.all_input_nodes), default=0)
        depths[node] = before + (node in data and is_weighted(node, data))
    return depths
