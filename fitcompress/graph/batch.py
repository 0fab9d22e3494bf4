"""Frees the batch size of a captured graph that holds it as a number. Layer: graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fitcompress.errors import CaptureError
from fitcompress.graph.program import (
    Program,
    Shape,
    clone,
    propagate_shapes,
    run_program,
)

__all__ = ["make_batch_dynamic", "merge_recordings"]

aten = torch.ops.aten

_SIZE_CALLS = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def merge_recordings(two: Program, three: Program) -> Program:
    """One program from recordings of the same network at batch sizes 2 and 3: the numbers that differ follow the batch.

    Raises:
        CaptureError: the recordings differ in more than multiples of the batch size.
    """
    size = _BatchSize(two.graph)
    nodes = list(two.graph.nodes)
    others = list(three.graph.nodes)
    same_calls = [(n.op, n.target) for n in nodes] == [(n.op, n.target) for n in others]
    if not same_calls:
        raise CaptureError("capturing the network: what it computes depends on the batch size")
    match = dict(zip(others, nodes, strict=True))
    for node, other in zip(nodes, others, strict=True):
        args = _merged((node.args, dict(node.kwargs)), (other.args, dict(other.kwargs)), match)
        if _has_multiple(args):
            positional, named = _resolved(args, node, size)
            node.args, node.kwargs = tuple(positional), named
    return two


class _Multiple(int):
    """A number that is so many times the batch size."""


def _merged(a: Any, b: Any, match: dict[Node, Node]) -> Any:
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [_merged(x, y, match) for x, y in zip(a, b, strict=True)]
    if isinstance(a, dict):
        return {key: _merged(value, b[key], match) for key, value in a.items()}
    if isinstance(b, Node):
        b = match[b]
    if a is b or a == b:
        return a
    if isinstance(a, int) and isinstance(b, int) and a * 3 == b * 2:
        return _Multiple(a // 2)
    raise CaptureError(f"capturing the network: '{a}' at batch 2 is '{b}' at batch 3")


def _has_multiple(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_has_multiple(item) for item in value)
    if isinstance(value, dict):
        return any(_has_multiple(item) for item in value.values())
    return isinstance(value, _Multiple)


def _resolved(args: Any, node: Node, size: _BatchSize) -> Any:
    """The arguments with each multiple of the batch as -1 in a reshape, else as arithmetic on the input's size."""
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
    """Nodes for the batch size and its multiples, made when they are first needed."""

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
    """A program for any batch size from one whose sizes were written down at `batch_size`. The given one is not modified.

    Walks the graph at three times the batch size; where a reshape or an expansion does not follow, the number that holds the
    batch is found from the position of the input's batch dimension. The result is checked by running it: a batch must
    give the same as its parts.

    Raises:
        CaptureError: some number could not be attributed, or the check failed.
    """
    freed = clone(program)
    shapes = propagate_shapes(program, batch_size)
    size = _BatchSize(freed.graph)
    for _ in range(len(list(freed.graph.nodes))):
        failure = _first_mismatch(freed, shapes, batch_size)
        if failure is None:
            break
        node, source_dim = failure
        _free(node, shapes, source_dim, batch_size, size)
    _check(program, freed, batch_size)
    return freed
