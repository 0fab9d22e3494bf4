"""Inserts layers into a program: norms after convolutions, residual layers after contractions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from fitcompress.graph.names import TakenNames
from fitcompress.graph.program import ACTIVATIONS, Program, operation
from fitcompress.graph.shapes import Shape

__all__ = ["Insert", "insert_norm", "insert_residual", "takes_residual"]

aten = torch.ops.aten

_MAPS = ("conv1d", "conv2d", "conv3d")
_MOMENTUM, _EPS = 0.1, 1e-5
"""PyTorch's defaults for batch norm."""


@dataclass(frozen=True)
class Insert:
    """Nodes inserted into a graph."""

    output: Node
    tensors: dict[str, Tensor]
    """The new tensors by name, on the meta device."""
    trainable: frozenset[str]
    zeroed: frozenset[str] = frozenset()
    """Tensors that start at zero."""
    origins: dict[str, str] = field(default_factory=dict)


class _Builder:
    """Appends nodes and their tensors after a node."""

    def __init__(self, point: Node) -> None:
        self.graph: Graph = point.graph
        self.last = point
        self.tensors: dict[str, Tensor] = {}
        self.trainable: set[str] = set()

    def call(
        self,
        target: Any,
        args: tuple[Any, ...],
        owner: str,
        kwargs: dict[str, Any] | None = None,
    ) -> Node:
        with self.graph.inserting_after(self.last):
            self.last = self.graph.call_function(target, args, kwargs or {})
        self.last.meta["owner"] = owner
        return self.last

    def tensor(self, name: str, *shape: int, trained: bool = True) -> Node:
        self.tensors[name] = torch.empty(shape, device="meta")
        if trained:
            self.trainable.add(name)
        with self.graph.inserting_after(self.last):
            self.last = self.graph.create_node("get_attr", name)
        return self.last

    def batch_norm(self, source: Node, path: str, channels: int, options: tuple[Any, ...]) -> Node:
        parameters = [self.tensor(f"{path}.{name}", channels) for name in ("weight", "bias")]
        statistics = [
            self.tensor(f"{path}.{name}", channels, trained=False)
            for name in ("running_mean", "running_var")
        ]
        return self.call(
            aten.batch_norm.default, (source, *parameters, *statistics, *options), path
        )


def insert_norm(program: Program, node: Node) -> Insert:
    """Inserts a batch norm after a convolution, for all users of the convolution."""
    weight = str(node.args[1].target)  # type: ignore[union-attr]
    users = list(node.users)
    build = _Builder(node)
    channels = program.tensors[weight].shape[0]
    options = (False, _MOMENTUM, _EPS, False)
    output = build.batch_norm(node, f"{_module(weight)}_norm", channels, options)
    _redirect(users, node, output)
    return Insert(output, build.tensors, frozenset(build.trainable))


def takes_residual(program: Program, node: Node) -> bool:
    """Whether `insert_residual` supports the node."""
    return operation(node) in (*_MAPS, "linear") and _trained_weight(program, node) is not None


def insert_residual(
    program: Program, node: Node, shapes: dict[str, Shape], names: TakenNames
) -> Insert:
    """Inserts y + layer(activation(norm(y))) after a convolution or linear layer y.

    Norm and activation are like the nearest ones in the graph. The new layer starts at zero and is
    named after y, such as `conv1_deeper`.

    shapes: shapes of all values. The shape of y's weight may differ from its tensor's.
    """
    is_map, weight = operation(node) in _MAPS, _trained_weight(program, node)
    assert weight is not None, node
    shape = shapes[node.args[1].name]  # type: ignore[index, union-attr]
    path = names.free_path(f"{_module(weight)}_deeper")
    users = list(node.users)
    build = _Builder(node)
    inner = _norm_like(build, node, f"{path}.norm", shape[0], is_map)
    activation = _nearest(node, lambda other: operation(other) in ACTIVATIONS)
    target, options = (
        (activation.target, activation.args[1:]) if activation else (aten.relu.default, ())
    )
    kwargs = dict(activation.kwargs) if activation else {}
    inner = build.call(target, (inner, *options), path, kwargs)
    branch = _layer(build, node, inner, f"{path}.layer", shape)
    output = build.call(aten.add.Tensor, (node, branch), path.rpartition(".")[0])
    _redirect(users, node, output)
    zeroed = frozenset(name for name in build.tensors if name.startswith(f"{path}.layer."))
    return Insert(output, build.tensors, frozenset(build.trainable), zeroed)


def _trained_weight(program: Program, node: Node) -> str | None:
    """The name of the contraction's weight, which may be standardized before it is used."""
    pending = [node.args[1]] if len(node.args) > 1 else []
    while pending:
        source = pending.pop(0)
        if not isinstance(source, Node):
            continue
        if source.op == "get_attr" and program.tensors[str(source.target)].dim() > 1:
            return str(source.target)
        pending.extend(source.all_input_nodes)
    return None


def _norm_like(build: _Builder, node: Node, path: str, channels: int, is_map: bool) -> Node:
    kind = "batch_norm" if is_map else "layer_norm"
    found = _nearest(node, lambda other: operation(other) == kind)
    if is_map:
        options = tuple(found.args[5:]) if found else (False, _MOMENTUM, _EPS, False)
        return build.batch_norm(node, path, channels, options)
    if found is None:
        return node
    parameters = [build.tensor(f"{path}.{name}", channels) for name in ("weight", "bias")]
    args = (node, [channels], *parameters, *found.args[4:])
    return build.call(aten.layer_norm.default, args, path)


def _layer(build: _Builder, node: Node, source: Node, path: str, shape: tuple[int, ...]) -> Node:
    """A contraction like `node` that keeps the shape of its input.

    It has stride 1 and kernel 1 or 3, and is depthwise if `node` is.
    """
    width, inner, *kernel = shape
    if not kernel:
        weight = build.tensor(f"{path}.weight", width, width)
        args = (source, weight, build.tensor(f"{path}.bias", width))
        return build.call(aten.linear.default, args, path)
    extents = [1 if extent == 1 else 3 for extent in kernel]
    groups = width if inner == 1 and _groups(node) == width else 1
    weight = build.tensor(f"{path}.weight", width, width // groups, *extents)
    ones, paddings = [1] * len(extents), [extent // 2 for extent in extents]
    target = getattr(aten, operation(node)).default
    return build.call(target, (source, weight, None, ones, paddings, ones, groups), path)


def _groups(node: Node) -> int:
    given = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
    assert isinstance(given, int)
    return given


def _nearest(node: Node, wanted: Callable[[Node], bool]) -> Node | None:
    """The nearest matching node in graph order; of two at the same distance, the later one."""
    behind = node.next
    before = node.prev
    while behind.op != "root" or before.op != "root":
        if behind.op != "root":
            if wanted(behind):
                return behind
            behind = behind.next
        if before.op != "root":
            if wanted(before):
                return before
            before = before.prev
    return None


def _redirect(users: Iterable[Node], old: Node, new: Node) -> None:
    for user in users:
        user.replace_input_with(old, new)


def _module(name: str) -> str:
    return name.rpartition(".")[0] or name
