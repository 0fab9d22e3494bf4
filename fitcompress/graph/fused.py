"""Calls that torch makes of several under no-grad, and what they compute in plain ones. Layer:
graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.errors import CaptureError

__all__ = ["DECOMPOSED"]

aten = torch.ops.aten


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
    """What `aten::_transformer_encoder_layer_fwd` computes, in plain calls
    (nn.TransformerEncoderLayer under no-grad).
    """
    if mask is not None:
        raise CaptureError(
            "capturing the archive: a fused encoder layer with a mask is not supported"
        )

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, [embed_dim], weight, bias, eps)

    def attend(x: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[1]
        packed = nn.functional.linear(x, qkv_weight, qkv_bias)
        parts = packed.reshape(batch, tokens, 3, num_heads, embed_dim // num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        joined = mixed.reshape(batch, tokens, embed_dim)
        return nn.functional.linear(joined, proj_weight, proj_bias)

    def feed(x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, ffn_weight_1, ffn_bias_1)
        inner = nn.functional.gelu(inner) if use_gelu else nn.functional.relu(inner)
        return nn.functional.linear(inner, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)


DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
}
"""The plain form of each fused call."""
