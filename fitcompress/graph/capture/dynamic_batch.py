"""Makes the batch size of a captured graph dynamic."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fitcompress.errors import CaptureError
from fitcompress.formatting import first_line
from fitcompress.graph.examples import random_input
from fitcompress.graph.program import RECURRENT_CALLS, Program, clone, run_program
from fitcompress.graph.shapes import Shape, propagate_shapes

__all__ = ["agree", "make_batch_dynamic", "merge_recordings"]

aten = torch.ops.aten

_SIZE_CALLS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def merge_recordings(one: Program, other: Program, batch_sizes: tuple[int, int]) -> Program:
    """One program from recordings of a network at two batch sizes: numbers that differ between the
    two are computed from the batch size. Edits `one` in place.

    Raises:
        CaptureError: the recordings differ in more than multiples of the batch size.
    """
    size, merge = _BatchSize(one.graph), _Merge(*batch_sizes)
    nodes, others = list(one.graph.nodes), list(other.graph.nodes)
    merge.refuse_other_calls(nodes, others)
    merge.refuse_other_constants(one.tensors, other.tensors)
    match = dict(zip(others, nodes, strict=True))
    for node, twin in zip(nodes, others, strict=True):
        args = merge.arguments(
            (node.args, dict(node.kwargs)), (twin.args, dict(twin.kwargs)), match
        )
        if _has_multiple(args):
            positional, named = _resolved(args, node, size)
            node.args, node.kwargs = tuple(positional), named
    return one


@dataclass(frozen=True)
class _Merge:
    """Compares recordings at two batch sizes."""

    first: int
    second: int

    def refuse_other_calls(self, nodes: Sequence[Node], others: Sequence[Node]) -> None:
        for node, twin in zip_longest(nodes, others):
            if node is None or twin is None or (node.op, node.target) != (twin.op, twin.target):
                calls = str(node and node.target), str(twin and twin.target)
                raise CaptureError(
                    "capturing the network: its calls depend on the batch size:"
                    f" '{calls[0]}' at batch {self.first}, '{calls[1]}' at batch {self.second}",
                    code="batch-dependent-calls",
                    advice=_SAME_FOR_ALL,
                    calls=list(calls),
                    batch_sizes=[self.first, self.second],
                )

    def refuse_other_constants(self, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
        """Raise if a constant that was computed during the run depends on the batch size."""
        for name, value in one.items():
            twin = two[name]
            if value.shape != twin.shape or not (value.is_meta or torch.equal(value, twin)):
                raise CaptureError(
                    "capturing the network: a constant depends on the batch size:"
                    f" {value.tolist()} at batch {self.first}, {twin.tolist()} at batch"
                    f" {self.second}",
                    code="batch-dependent-constant",
                    advice=_SAME_FOR_ALL,
                    values=[value.tolist(), twin.tolist()],
                    batch_sizes=[self.first, self.second],
                )

    def arguments(self, a: Any, b: Any, match: dict[Node, Node]) -> Any:
        """The arguments of a call, in which multiples of the batch size are `_Multiple`."""
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            return [self.arguments(x, y, match) for x, y in zip(a, b, strict=True)]
        if isinstance(a, dict):
            return {key: self.arguments(value, b[key], match) for key, value in a.items()}
        if isinstance(b, Node):
            b = match[b]
        if a is b or a == b:
            return a
        is_multiple = isinstance(a, int) and isinstance(b, int) and a % self.first == 0
        if is_multiple and a * self.second == b * self.first:
            return _Multiple(a // self.first)
        raise CaptureError(
            "capturing the network: an argument depends on the batch size in an unsupported way:"
            f" '{a}' at batch {self.first}, '{b}' at batch {self.second}",
            code="batch-dependent-argument",
            advice=_SAME_FOR_ALL,
            values=[str(a), str(b)],
            batch_sizes=[self.first, self.second],
        )


_SAME_FOR_ALL = "Use a version of the network that treats all samples of a batch alike."


class _Multiple(int):
    """A multiple of the batch size, as its factor."""


def _has_multiple(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_multiple(item) for item in value)
    if isinstance(value, dict):
        return any(_has_multiple(item) for item in value.values())
    return isinstance(value, _Multiple)


def _resolved(args: Any, node: Node, size: _BatchSize) -> Any:
    """The arguments, in which each multiple of the batch size is -1 in a reshape and otherwise
    computed from the input's size.
    """
    positional, named = args
    if node.target in _SIZE_CALLS and -1 not in positional[1]:
        multiples = [i for i, item in enumerate(positional[1]) if isinstance(item, _Multiple)]
        if len(multiples) == 1:
            positional[1][multiples[0]] = -1
    return _replaced((positional, named), lambda item: size.times(int(item), node))


def _replaced(value: Any, function: Callable[[_Multiple], Any]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_replaced(item, function) for item in value]
    if isinstance(value, dict):
        return {key: _replaced(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, _Multiple) else value


class _BatchSize:
    """Nodes for the batch size and its multiples, created on first use."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source = next(node for node in graph.nodes if node.op == "placeholder")
        self._size: Node | None = None

    def times(self, factor: int, user: Node) -> Node:
        if self._size is None:
            first = next(n for n in self.graph.nodes if n.op != "placeholder")
            with self.graph.inserting_before(first):
                self._size = self.graph.call_function(aten.sym_size.int, (self.source, 0))
                self._size.meta["owner"] = ""
        if factor == 1:
            return self._size
        with self.graph.inserting_before(user):
            product = self.graph.call_function(operator.mul, (self._size, factor))
            product.meta["owner"] = str(user.meta.get("owner", ""))
        return product


def make_batch_dynamic(program: Program, batch_size: int) -> Program:
    """A program for any batch size from one that was captured at a fixed `batch_size`. The given
    one is not modified.

    Runs the graph at three times the batch size. If a call has the batch size among its literals,
    the batch dimension of its input tells which literal that is. The result is verified by running
    it: the outputs for a batch must equal those for its parts.

    Raises:
        CaptureError: a literal could not be attributed, or the verification failed.
    """
    freed = clone(program)
    walk = _Walk(freed, propagate_shapes(program, batch_size), batch_size)
    try:
        for node in list(freed.graph.nodes):
            walk.visit(node)
        _check(program, freed, batch_size)
    except (RuntimeError, IndexError, ValueError) as error:
        cause = first_line(error)
        raise CaptureError(
            f"making the fixed batch size {batch_size} dynamic: {cause}",
            code="batch-size-fixed",
            advice="Export the network with a dynamic batch size, or pass the original model.",
            batch_size=batch_size,
            cause=cause,
        ) from error
    return freed


class _Walk:
    """Runs a graph on the meta device at another batch size and corrects calls on the way."""

    def __init__(self, program: Program, shapes: dict[str, Shape], batch_size: int) -> None:
        self.program, self.shapes, self.batch_size = program, shapes, batch_size
        self.values: dict[Node, Any] = {}
        self.size = _BatchSize(program.graph)
        self.inputs = {info.name: info for info in program.inputs}

    def visit(self, node: Node) -> None:
        match node.op:
            case "placeholder":
                info = self.inputs[node.name]
                shape = (3 * self.batch_size, *info.shape)
                self.values[node] = torch.empty(shape, dtype=info.dtype, device="meta")
            case "get_attr":
                self.values[node] = self.program.tensors[str(node.target)].to("meta")
            case "call_function":
                self._free(node)
                self.values[node] = self._evaluate(node)

    def _evaluate(self, node: Node) -> Any:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self._value)
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[operator]

    def _value(self, node: Node) -> Any:
        if node not in self.values:
            self.values[node] = self._evaluate(node)
        return self.values[node]

    def _free(self, node: Node) -> None:
        if node.target in _SIZE_CALLS:
            self._free_reshape(node)
        elif node.target in (aten.expand.default, aten.repeat.default):
            self._free_expansion(node)
        elif node.target in RECURRENT_CALLS:
            self._free_states(node)
        elif node.target in _FACTORY_CALLS and node.args[1][0] == self.batch_size:  # type: ignore[index]
            node.args = (node.args[0], self._with_batch(node), *node.args[2:])

    def _with_batch(self, node: Node) -> list[Any]:
        return [self.size.times(1, node), *list(node.args[1])[1:]]  # type: ignore[arg-type]

    def _free_reshape(self, node: Node) -> None:
        source, target = node.args[0], node.args[1]
        assert isinstance(source, Node) and isinstance(target, (list, tuple))
        old, new = self.shapes[source.name], tuple(self.values[source].shape)
        if old == new or any(isinstance(item, Node) for item in target):
            return
        moved = next(d for d, (a, b) in enumerate(zip(old, new, strict=True)) if a != b)
        sizes = list(self.shapes[node.name])
        sizes[_place_of_batch(sizes, math.prod(old[:moved]), self.batch_size)] = -1
        node.args = (source, sizes)

    def _free_expansion(self, node: Node) -> None:
        source, sizes = node.args[0], node.args[1]
        assert isinstance(source, Node) and isinstance(sizes, (list, tuple))
        old, new = self.shapes[source.name], tuple(self.values[source].shape)
        if old == new and sizes[0] == self.batch_size:
            node.args = (source, self._with_batch(node))
        elif old != new and node.target is aten.expand.default:
            offset = len(sizes) - len(old)
            moved = {offset + d for d, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
            node.args = (source, [-1 if d in moved else s for d, s in enumerate(sizes)])

    def _free_states(self, node: Node) -> None:
        """Expand a constant initial state to the batch, if it is the same for every sample."""
        source, states, dim = node.args[0], node.args[1], 0 if node.args[8] else 1
        assert isinstance(source, Node)
        old, new = self.shapes[source.name][dim], self.values[source].shape[dim]
        if old != new:
            factor = old // self.batch_size
            node.update_arg(1, map_arg(states, lambda state: self._repeated(state, factor, node)))

    def _repeated(self, state: Node, factor: int, user: Node) -> Node:
        value = self.program.tensors.get(str(state.target)) if state.op == "get_attr" else None
        if value is None or not torch.equal(value, value[:, :1].expand_as(value)):
            raise ValueError(f"the initial states of '{user.target}' differ between samples")
        sizes: list[Any] = [-1, self.size.times(factor, user), -1]
        with self.program.graph.inserting_before(user):
            first = self.program.graph.call_function(aten.slice.Tensor, (state, 1, 0, 1))
            repeated = self.program.graph.call_function(aten.expand.default, (first, sizes))
        for call in (first, repeated):
            call.meta["owner"] = str(user.meta.get("owner", ""))
        return repeated


_FACTORY_CALLS = (aten.new_zeros.default, aten.new_ones.default, aten.new_full.default)


def _place_of_batch(sizes: Sequence[int], leading: int, batch_size: int) -> int:
    """The dimension of a row-major shape that contains the batch, given the product `leading` of
    the dimensions before the batch.
    """
    before = 1
    for dim, size in enumerate(sizes):
        if before == leading and size % batch_size == 0:
            return dim
        if before < leading < before * size:
            return dim
        before *= size
    raise ValueError(f"no dimension of {list(sizes)} can contain the batch of {batch_size}")


def _check(program: Program, freed: Program, batch_size: int) -> None:
    """Raise unless the outputs for two batches at once equal those for one after the other."""
    for size in (1, 3):
        propagate_shapes(freed, size)
    if any(value.is_meta for value in program.tensors.values()):
        return
    generator = torch.Generator().manual_seed(0)
    first, second = (
        [random_input(info, batch_size, generator) for info in program.inputs] for _ in range(2)
    )
    together = run_program(freed, *map(torch.cat, zip(first, second, strict=True)))
    apart = zip(run_program(program, *first), run_program(program, *second), strict=True)
    for joint, parts in zip(together, map(torch.cat, apart), strict=True):
        if not agree(joint, parts):
            raise ValueError("the outputs for a batch differ from those for its parts")


def agree(a: Tensor, b: Tensor) -> bool:
    """Whether two results are equal up to 1e-4 of the largest value: kernels may differ."""
    largest = b.abs().nan_to_num(0, 0, 0).max().item() if b.numel() else 0
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=0, atol=1e-4 * largest + 1e-6, equal_nan=True
    )
