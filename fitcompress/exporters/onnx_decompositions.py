"""Decompositions of calls that ONNX cannot express."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from fitcompress.graph.program import named_arguments

__all__ = ["decomposed_for_onnx"]

aten = torch.ops.aten


def decomposed_for_onnx(network: nn.Module) -> nn.Module:
    """An equivalent copy without such calls; the network itself if it has none."""
    if not any(_is_decomposed(node) for module in _graphs(network) for node in module.graph.nodes):
        return network
    network = copy.deepcopy(network)
    for module in _graphs(network):
        for node in filter(_is_decomposed, module.graph.nodes):
            node.target = _DECOMPOSITIONS[node.target]
        module.recompile()
    return network


def _graphs(network: nn.Module) -> list[fx.GraphModule]:
    return [module for module in network.modules() if isinstance(module, fx.GraphModule)]


def _is_decomposed(node: Node) -> bool:
    if node.target is aten.conv2d.default:  # in ONNX the number of groups is a constant
        return isinstance(named_arguments(node)["groups"], Node)
    return node.target in _DECOMPOSITIONS


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **more: Any,
) -> Tensor:
    """Attention of query (..., L, D), key and value (..., S, D), reshaped to the four dimensions
    that ONNX requires.
    """
    shape = (*query.shape[:-1], value.shape[-1])
    if attn_mask is not None and attn_mask.ndim > 2:
        attn_mask = _in_four(attn_mask.expand(*query.shape[:-1], key.shape[-2]))
    mixed: Tensor = aten.scaled_dot_product_attention.default(
        _in_four(query), _in_four(key), _in_four(value), attn_mask, *args, **more
    )
    return mixed.reshape(shape)


def _in_four(x: Tensor) -> Tensor:
    return x.unsqueeze(1) if x.ndim == 3 else x.flatten(0, -4)


def _convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolution of input (N, groups * I, H, W) with weight (groups * O, I, h, w) as a matrix
    product over the input's patches, one per group.
    """
    kernel = weight.shape[2:]
    settings = zip(input.shape[2:], kernel, stride, padding, dilation, strict=True)
    places = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings]
    patches: Tensor = aten.im2col.default(input, kernel, dilation, padding, stride)
    rows = weight.shape[1] * kernel[0] * kernel[1]
    maps = weight.reshape(groups, -1, rows) @ patches.reshape(input.shape[0], groups, rows, -1)
    result: Tensor = maps.reshape(input.shape[0], -1, *places)
    return result if bias is None else result + bias[:, None, None]


def _clamp(input: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    """Clamp with tensors as bounds. Not by maximum and minimum, which onnxscript 0.7 fuses into one
    call and places before its bounds.
    """
    input = input if min is None else torch.where(input < min, min, input)
    return input if max is None else torch.where(input > max, max, input)


_DECOMPOSITIONS: dict[Any, Callable[..., Tensor]] = {
    aten.scaled_dot_product_attention.default: _attend,
    aten.conv2d.default: _convolve,
    aten.clamp.Tensor: _clamp,
}
