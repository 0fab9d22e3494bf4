"""A program of ATen calls under construction, with the shape of every value at two batch sizes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fitcompress.graph.program import InputInfo, Program, prune

__all__ = ["BATCH_SIZES", "Drawing", "Scale", "Unfit", "overload"]

BATCH_SIZES = (11, 13)
"""A size that differs between the two contains the batch. The first is that of the analysis."""

_MOST_NUMBERS = 20_000
"""Elements of the largest tensor that is drawn, at the first batch size."""

_MOST_DIMS = 6


class Unfit(Exception):
    """A step found no value that it can use."""


@dataclass(frozen=True)
class Scale:
    """A literal that is the size of dimension `dim` of `value`, to this power."""

    value: str
    dim: int
    power: float


def overload(key: str) -> torch._ops.OpOverload:
    """The ATen overload of this name: "conv2d.default"."""
    name, form = key.split(".")
    return getattr(getattr(torch.ops.aten, name), form)


@dataclass
class Drawing:
    """A program under construction, and what the steps need to know about it."""

    random: Random = field(default_factory=lambda: Random(0))
    graph: Graph = field(default_factory=Graph)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)
    inputs: list[InputInfo] = field(default_factory=list)
    pool: list[Node] = field(default_factory=list)
    """Floating-point tensors that steps may read."""
    scales: dict[str, Scale] = field(default_factory=dict)
    block: int = 0
    """The number of the step, from which its tensors get their names."""
    is_closed: bool = False
    """Whether steps may only use existing values."""
    metas: dict[Node, tuple[Any, Any]] = field(default_factory=dict)

    # Values

    def call(self, key: str, *args: Any, **kwargs: Any) -> Node:
        """A call on earlier values.

        Raises:
            Unfit: it does not accept their shapes, or its result is too large.
        """
        target = overload(key)
        metas = self._run(target, args, kwargs, 0), self._run(target, args, kwargs, 1)
        if _is_like_a_batch(metas):
            raise Unfit(f"{target} gives a size that could be the batch")
        node = self.graph.call_function(target, args, kwargs)
        return self._note(node, metas)

    def _run(self, target: Any, args: Any, kwargs: Any, which: int) -> Any:
        """The call's result on the meta device at one of the batch sizes."""
        args, kwargs = map_arg((args, kwargs), lambda node: self.metas[node][which])
        if str(target).split(".")[1] in ("zeros", "ones", "full", "empty"):
            kwargs = {**kwargs, "device": "meta"}
        try:
            result = target(*args, **kwargs)
        except (RuntimeError, NotImplementedError, IndexError, ValueError, TypeError) as error:
            raise Unfit(f"{target}: {error}") from error
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if not 0 < value.numel() <= _MOST_NUMBERS or value.dim() > _MOST_DIMS:
                raise Unfit(f"{target} gives {tuple(value.shape)}")
        return result

    def _note(self, node: Node, metas: tuple[Any, Any]) -> Node:
        node.meta["owner"] = ""
        self.metas[node] = metas
        return node

    def item(self, node: Node, index: int) -> Node:
        """One result of a call with several."""
        item = self.graph.call_function(operator.getitem, (node, index))
        one, other = self.metas[node]
        return self._note(item, (one[index], other[index]))

    def items(self, node: Node) -> list[Node]:
        """All results of a call with several."""
        return [self.item(node, index) for index in range(len(self.metas[node][0]))]

    def number(self, batches: int) -> Node:
        """A node whose value is a multiple of the batch size."""
        source = self._placeholders()[0] if self.inputs else self.input(3)
        batch = self.graph.call_function(torch.ops.aten.sym_size.int, (source, 0))
        self._note(batch, BATCH_SIZES)
        if batches == 1:
            return batch
        node = self.graph.call_function(operator.mul, (batch, batches))
        return self._note(node, (BATCH_SIZES[0] * batches, BATCH_SIZES[1] * batches))

    # Shapes

    def shape(self, node: Node) -> tuple[int, ...]:
        """The shape at the first batch size."""
        return tuple(self.metas[node][0].shape)

    def rank(self, node: Node) -> int:
        return len(self.shape(node))

    def is_batch(self, node: Node, dim: int) -> bool:
        """Whether the size of the dimension contains the batch."""
        one, other = self.metas[node]
        return one.shape[dim] != other.shape[dim]

    def fixed_dims(self, node: Node, at_least: int = 2) -> list[int]:
        """The dimensions without the batch, of this size or larger."""
        shape = self.shape(node)
        return [d for d in range(len(shape)) if not self.is_batch(node, d) and shape[d] >= at_least]

    def dim(self, node: Node, at_least: int = 2) -> int:
        """One of the fixed dimensions.

        Raises:
            Unfit: there is none.
        """
        return self.choose(self.fixed_dims(node, at_least))

    def signed(self, node: Node, dim: int) -> int:
        """The dimension, counted from either end."""
        return self.choose([dim, dim - self.rank(node)])

    def literals(self, node: Node) -> list[int | Node]:
        """The sizes as arguments of a call: nodes for those that contain the batch."""
        return [
            self.number(size // BATCH_SIZES[0]) if self.is_batch(node, dim) else size
            for dim, size in enumerate(self.shape(node))
        ]

    # Leaves

    def weight(self, *shape: int) -> Node:
        """A trained tensor."""
        return self._tensor(torch.rand(shape, generator=self._generator()).double() - 0.4, True)

    def table(self, value: Tensor) -> Node:
        """A tensor that is not trained."""
        return self._tensor(value, False)

    def _tensor(self, value: Tensor, is_trained: bool) -> Node:
        name = f"blocks.{self.block}.part{len(self.tensors)}.weight"
        self.tensors[name] = value
        if is_trained:
            self.trainable.add(name)
        node = self.graph.create_node("get_attr", name)
        return self._note(node, (value.to("meta"), value.to("meta")))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(len(self.tensors))

    def input(self, *shape: int, dtype: torch.dtype = torch.float64) -> Node:
        """An input of this shape after the batch dimension; an existing one if possible."""
        for info, node in zip(self.inputs, self._placeholders(), strict=True):
            if info.shape == shape and info.dtype == dtype:
                return node
        name = f"input{len(self.inputs)}"
        self.inputs.append(InputInfo(name, shape, dtype))
        first = next(iter(self.graph.nodes), self.graph._root)
        behind = self._placeholders()[-1].next if self.inputs[1:] else first
        with self.graph.inserting_before(behind):
            node = self.graph.placeholder(name)
        one, other = (
            torch.empty((size, *shape), dtype=dtype, device="meta") for size in BATCH_SIZES
        )
        return self._note(node, (one, other))

    def _placeholders(self) -> list[Node]:
        return [node for node in self.graph.nodes if node.op == "placeholder"]

    # Choices

    def choose(self, options: Sequence[Any]) -> Any:
        """A random option.

        Raises:
            Unfit: there are none.
        """
        if not options:
            raise Unfit("nothing to choose from")
        return self.random.choice(options)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def width(self) -> int:
        """A number of channels."""
        return self.choose([2, 3, 4, 6, 8, 12])

    def divisor(self, size: int) -> int:
        return self.choose([d for d in range(1, size + 1) if size % d == 0])

    def pick(
        self, rank: int | None = None, fits: Callable[[Node], bool] | None = None, lowest: int = 2
    ) -> Node:
        """A value of this rank, or of at least the lowest; a new one if there is none.

        Raises:
            Unfit: neither an existing value nor a new one fits.
        """
        found = [
            node
            for node in self.pool
            if self.rank(node) == (rank or max(lowest, self.rank(node)))
            and (not fits or fits(node))
        ]
        if self.is_closed or (found and self.chance(0.9)):
            return self.choose(found[-6:])
        node = self.fresh(rank or self.choose([r for r in (2, 3, 4, 4) if r >= lowest]))
        if fits and not fits(node):
            raise Unfit("the new one does not fit")
        return node

    def fresh(self, rank: int, *, is_map: bool = False) -> Node:
        """A new value: a linear layer or convolution of an input, so that its width is free."""
        if rank > 5:
            raise Unfit("of too many dimensions")
        if rank == 2 or (rank == 3 and not is_map and self.chance(0.5)):
            x = self.input(*[5] * (rank - 2), 3)
            node = self.call("linear.default", x, self.weight(self.width(), 3))
        else:
            x = self.input(3, *[6 if rank < 5 else 4] * (rank - 2))
            weight = self.weight(self.width(), 3, *[1] * (rank - 2))
            node = self.call(f"conv{rank - 2}d.default", x, weight)
        self.pool.append(node)
        return node

    def put(self, *nodes: Node) -> None:
        """Offer these values, as floats, to later steps."""
        for node in nodes:
            if not self.metas[node][0].is_floating_point():
                node = self.call("to.dtype", node, torch.float64)
            if self.rank(node):
                self.pool.append(node)

    # The end

    def finish(self) -> Program:
        """The program. Its outputs are the unused values, most of them reduced or mapped so that
        their sizes stay free."""
        self.block += 1
        if not self.pool:
            self.fresh(3)
        ends = [node for node in self.pool if not node.users][-8:] or self.pool[-1:]
        outputs = [self._end(node) for node in ends]
        self.graph.output(tuple(outputs))
        program = Program(self.graph, self.tensors, frozenset(self.trainable), tuple(self.inputs))
        self.graph.lint()
        return prune(program)

    def _end(self, node: Node) -> Node:
        kind = self.choose(["as it is", *["sum"] * 4, *["map"] * 3])
        fixed = self.fixed_dims(node, 1)
        if kind == "sum" and fixed:
            return self.call("sum.dim_IntList", node, fixed)
        width = self.shape(node)[-1]
        if kind == "map" and self.rank(node) > 1 and not self.is_batch(node, self.rank(node) - 1):
            return self.call("linear.default", node, self.weight(1, width))
        return node


def _is_like_a_batch(metas: Any) -> bool:
    """Whether a size that does not contain the batch is a multiple of the batch size."""
    pairs = [metas] if isinstance(metas[0], Tensor) else zip(*metas, strict=True)
    return any(
        size == other and size % BATCH_SIZES[0] == 0
        for one, two in pairs
        for size, other in zip(one.shape, two.shape, strict=True)
    )
