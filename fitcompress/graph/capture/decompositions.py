"""Decompositions of fused ATen calls into plain ones.

In eval mode and without gradients, torch's own `nn.MultiheadAttention` and
`nn.TransformerEncoderLayer` call one fused kernel each, which has no axis rule and no gradient. A
trace of such a model contains these calls; this table is the only place that knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.errors import CaptureError

__all__ = ["DECOMPOSED"]

aten = torch.ops.aten


def _attend(
    x: Tensor,
    num_heads: int,
    qkv: tuple[Tensor, Tensor],
    projection: tuple[Tensor, Tensor],
    need_weights: bool = False,
) -> tuple[Tensor, Tensor]:
    """Multi-head self-attention of x (N, L, D), and its weights (N, H, L, L) if `need_weights`."""
    packed = nn.functional.linear(x, *qkv).unflatten(-1, (3, num_heads, -1))
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
    if need_weights:
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = weights @ v
    else:
        weights = q.new_empty(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
    return nn.functional.linear(mixed.transpose(1, 2).flatten(2), *projection), weights


_ADVICE = "Pass the original model, or export it with torch.export, which does not fuse attention."


def _multi_head_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,  # noqa: ARG001 (the schema's)
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    mask: Tensor | None = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,  # noqa: ARG001 (the schema's)
) -> tuple[Tensor, Tensor]:
    """`aten::_native_multi_head_attention` (of nn.MultiheadAttention) in plain calls."""
    _refuse_mask(mask)
    if not query.data_ptr() == key.data_ptr() == value.data_ptr():
        raise CaptureError(
            "capturing the archive: fused attention between two sequences is not supported",
            code="cross-attention-unsupported",
            advice=_ADVICE,
        )
    maps = ((qkv_weight, qkv_bias), (proj_weight, proj_bias))
    mixed, weights = _attend(query, num_heads, *maps, need_weights)
    return mixed, weights.mean(1) if need_weights and average_attn_weights else weights


def _refuse_mask(mask: Tensor | None) -> None:
    if mask is not None:
        raise CaptureError(
            "capturing the archive: fused attention with a mask is not supported",
            code="attention-mask-unsupported",
            advice=_ADVICE,
        )


def _encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,  # noqa: ARG001 (the schema's)
) -> Tensor:
    """`aten::_transformer_encoder_layer_fwd` (of nn.TransformerEncoderLayer) in plain calls."""
    _refuse_mask(mask)
    maps = ((qkv_weight, qkv_bias), (proj_weight, proj_bias))

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, [embed_dim], weight, bias, eps)

    def attend(x: Tensor) -> Tensor:
        return _attend(x, num_heads, *maps)[0]

    def feed(x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, ffn_weight_1, ffn_bias_1)
        inner = nn.functional.gelu(inner) if use_gelu else nn.functional.relu(inner)
        return nn.functional.linear(inner, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)


def _repeat_interleave(
    x: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """`repeat_interleave` by a tensor: a number if it has one element, as in traces; otherwise one
    count per row, as an index."""
    if repeats.numel() == 1:
        return x.repeat_interleave(int(repeats), dim, output_size=output_size)
    index = torch.repeat_interleave(repeats, output_size=output_size)
    return x.flatten().index_select(0, index) if dim is None else x.index_select(dim, index)


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten._native_multi_head_attention.default: _multi_head_attention,
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
    aten.repeat_interleave.self_Tensor: _repeat_interleave,
}
"""For each fused call, the function that computes it in plain calls."""
