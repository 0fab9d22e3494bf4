"""Recognizes calls that a standard leaf module (`nn.Conv2d`, ...) would make, and makes the module.

One small function per kind of layer turns the call's arguments into a module that makes exactly
this call. A call that matches none of them remains a plain call, which is correct but less
convenient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from fitcompress.graph.program import WEIGHT_ARGUMENTS, Program, named_arguments
from fitcompress.graph.shapes import propagate_shapes

__all__ = ["Leaf", "find_leaves", "make_leaf"]

aten = torch.ops.aten


@dataclass(frozen=True)
class Leaf:
    """A call that becomes a leaf module."""

    path: str
    """Dotted name of the module."""
    kind: str
    """Class name in `torch.nn`."""
    options: tuple[tuple[str, Any], ...]
    """Arguments of its constructor."""
    tensors: tuple[tuple[str, str], ...]
    """Attribute of the module -> dotted name of the tensor."""
    source: Node
    """The value that the module is called on."""


def find_leaves(program: Program) -> dict[Node, Leaf]:
    """The calls that become leaf modules. Each tensor belongs to at most one leaf, which may be
    called several times.
    """
    shapes = propagate_shapes(program)
    found: dict[Node, Leaf] = {}
    for node in program.graph.nodes:
        rule = _RULES.get(node.target) if node.op == "call_function" else None
        leaf = rule(node, _Context(program, shapes)) if rule else None
        if leaf is not None:
            found[node] = leaf
    found = _without_conflicts(found, program)
    return {**found, **_dropouts(program, {leaf.path for leaf in found.values()})}


def make_leaf(leaf: Leaf, program: Program) -> nn.Module:
    """The module with copies of its tensors; those not trainable require no gradient."""
    place = {"device": "meta"} if leaf.tensors else {}
    module: nn.Module = getattr(nn, leaf.kind)(**dict(leaf.options), **place)
    for attribute, name in leaf.tensors:
        value = program.tensors[name].detach().clone()
        if attribute in module._buffers:
            module._buffers[attribute] = value
        else:
            setattr(module, attribute, nn.Parameter(value, name in program.trainable))
    if module._buffers.get("num_batches_tracked") is not None:
        device = program.tensors[leaf.tensors[0][1]].device
        module._buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.long, device=device)
    return module


@dataclass(frozen=True)
class _Context:
    program: Program
    shapes: Mapping[str, Any]

    def leaf(
        self, kind: str, source: Any, tensors: Mapping[str, Any], **options: Any
    ) -> Leaf | None:
        """A leaf, if all tensors are stored under one path and every option is a constant."""
        present = {key: node for key, node in tensors.items() if node is not None}
        if not all(isinstance(n, Node) and n.op == "get_attr" for n in (*present.values(),)):
            return None
        names = {key: str(node.target) for key, node in present.items()}
        paths = {name.removesuffix(f".{key}") for key, name in names.items()}
        exact = all(name == f"{path}.{key}" for path in paths for key, name in names.items())
        if len(paths) != 1 or not exact or not isinstance(source, Node) or _has_node(options):
            return None
        frozen = tuple((key, _frozen(value)) for key, value in options.items())
        return Leaf(paths.pop(), kind, frozen, tuple(names.items()), source)

    def shape(self, node: Any) -> tuple[int, ...]:
        return tuple(self.shapes[node.name]) if isinstance(node, Node) else ()


def _has_node(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_node(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_node(item) for item in value)
    return isinstance(value, Node)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, (list, tuple)) else value


def _without_conflicts(found: dict[Node, Leaf], program: Program) -> dict[Node, Leaf]:
    """The leaves that share no tensor and no name with anything else."""
    by_path: dict[str, set[Leaf]] = defaultdict(set)
    for leaf in found.values():
        by_path[leaf.path].add(_anonymous(leaf))
    users = {str(n.target): set(n.users) for n in program.graph.nodes if n.op == "get_attr"}
    below = _names_below(program.tensors)

    def stands_alone(leaf: Leaf) -> bool:
        names = {name for _, name in leaf.tensors}
        callers = {user for name in names for user in users[name]}
        is_sole_user = all(user in found and found[user].path == leaf.path for user in callers)
        return len(by_path[leaf.path]) == 1 and is_sole_user and below[leaf.path] == names

    return {node: leaf for node, leaf in found.items() if stands_alone(leaf)}


def _anonymous(leaf: Leaf) -> Leaf:
    return Leaf(leaf.path, leaf.kind, leaf.options, leaf.tensors, _NOWHERE)


_NOWHERE = torch.fx.Graph().placeholder("nowhere")


def _names_below(names: Mapping[str, Tensor]) -> dict[str, set[str]]:
    """The tensors below each dotted prefix."""
    below: dict[str, set[str]] = defaultdict(set)
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts)):
            below[".".join(parts[:length])].add(name)
    return below


def _dropouts(program: Program, taken: set[str]) -> dict[Node, Leaf]:
    """Dropouts, under their module's name if it is free, otherwise below it."""
    occupied = taken | set(_names_below(program.tensors)) | {""}
    found: dict[Node, Leaf] = {}
    for node in program.graph.nodes:
        kind = _DROPOUTS.get(node.target)
        if kind is None or node.op != "call_function":
            continue
        owner = str(node.meta.get("owner", ""))
        if owner in taken:
            owner = owner.rpartition(".")[0]
        path = owner if owner not in occupied else f"{owner}.{node.name}".lstrip(".")
        occupied.add(path)
        found[node] = Leaf(path, kind, (("p", node.args[1]),), (), node.args[0])
    return found


_DROPOUTS = {
    aten.dropout.default: "Dropout",
    aten.feature_dropout.default: "Dropout2d",
    aten.alpha_dropout.default: "AlphaDropout",
}


# --- one rule per kind of call ---------------------------------------------------------


def _convolution(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    if isinstance(a["groups"], Node):  # one kernel per sample: the groups count the batch
        return None
    shape, rank = context.shape(a["weight"]), len(context.shape(a["weight"])) - 2
    padding = a["padding"] if isinstance(a["padding"], str) else _expanded(a["padding"], rank)
    return context.leaf(
        f"Conv{rank}d",
        a["input"],
        {"weight": a["weight"], "bias": a["bias"]},
        in_channels=shape[1] * a["groups"],
        out_channels=shape[0],
        kernel_size=shape[2:],
        stride=_expanded(a["stride"], rank),
        padding=padding,
        dilation=_expanded(a["dilation"], rank),
        groups=a["groups"],
        bias=a["bias"] is not None,
    )


def _transposed_convolution(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    shape, rank = context.shape(a["weight"]), len(context.shape(a["weight"])) - 2
    return context.leaf(
        f"ConvTranspose{rank}d",
        a["input"],
        {"weight": a["weight"], "bias": a["bias"]},
        in_channels=shape[0],
        out_channels=shape[1] * a["groups"],
        kernel_size=shape[2:],
        stride=_expanded(a["stride"], rank),
        padding=_expanded(a["padding"], rank),
        output_padding=_expanded(a["output_padding"], rank),
        dilation=_expanded(a["dilation"], rank),
        groups=a["groups"],
        bias=a["bias"] is not None,
    )


def _expanded(value: Any, rank: int) -> Any:
    return list(value) * rank if len(value) == 1 else list(value)


def _linear(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    shape = context.shape(a["weight"])
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    if len(shape) != 2:
        return None
    sizes = {"in_features": shape[1], "out_features": shape[0]}
    return context.leaf("Linear", a["input"], tensors, **sizes, bias=a["bias"] is not None)


def _batch_norm(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    rank = {2: 1, 3: 1, 4: 2, 5: 3}.get(len(context.shape(a["input"])))
    is_plain = not a["training"] and None not in (a["running_mean"], a["running_var"], rank)
    if not is_plain or (a["weight"] is None) != (a["bias"] is None):
        return None
    return context.leaf(
        f"BatchNorm{rank}d",
        a["input"],
        {key: a[key] for key in WEIGHT_ARGUMENTS},
        num_features=context.shape(a["running_mean"])[0],
        eps=a["eps"],
        momentum=a["momentum"],
        affine=a["weight"] is not None,
    )


def _layer_norm(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    if a["weight"] is None:
        return None
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    options = {"normalized_shape": a["normalized_shape"], "eps": a["eps"]}
    return context.leaf("LayerNorm", a["input"], tensors, **options, bias=a["bias"] is not None)


def _rms_norm(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    if a["weight"] is None:
        return None
    options = {"normalized_shape": a["normalized_shape"], "eps": a["eps"]}
    return context.leaf("RMSNorm", a["input"], {"weight": a["weight"]}, **options)


def _group_norm(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    if a["weight"] is None or a["bias"] is None:
        return None
    sizes = {"num_groups": a["num_groups"], "num_channels": context.shape(a["weight"])[0]}
    tensors = {"weight": a["weight"], "bias": a["bias"]}
    return context.leaf("GroupNorm", a["input"], tensors, **sizes, eps=a["eps"])


def _embedding(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    if a["padding_idx"] != -1 or a["scale_grad_by_freq"] or a["sparse"]:
        return None
    count, width = context.shape(a["weight"])
    sizes = {"num_embeddings": count, "embedding_dim": width}
    return context.leaf("Embedding", a["indices"], {"weight": a["weight"]}, **sizes)


def _prelu(node: Node, context: _Context) -> Leaf | None:
    a = named_arguments(node)
    shape = context.shape(a["weight"])
    if len(shape) != 1:
        return None
    return context.leaf("PReLU", a["self"], {"weight": a["weight"]}, num_parameters=shape[0])


_RULES: dict[Any, Callable[[Node, _Context], Leaf | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.linear.default: _linear,
    aten.batch_norm.default: _batch_norm,
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: _group_norm,
    aten.embedding.default: _embedding,
    aten.prelu.default: _prelu,
}
