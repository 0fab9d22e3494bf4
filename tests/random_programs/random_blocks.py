"""Steps of random programs that are whole blocks: attention, residual layers, recurrent layers."""

from __future__ import annotations

import torch
from random_programs.random_drawing import Drawing, Scale
from random_programs.random_steps import Step, mapped, places
from torch.fx import Node


def attention(b: Drawing) -> None:
    """Self-attention, with packed or separate q, k, v, fused or with explicit products."""
    x = b.pick(3, lambda n: b.is_batch(n, 0) and not b.is_batch(n, 2) and not b.is_batch(n, 1))
    batch, length, _ = b.literals(x)
    heads, inner = b.choose([1, 2, 3, 4]), b.choose([2, 3, 5])
    whole = heads * inner
    kind = b.choose(["reshape", "chunk", "apart", "split"])
    if kind == "reshape":
        packed = b.call(
            "reshape.default", mapped(b, x, 3 * whole), [batch, length, 3, heads, inner]
        )
        moved = b.call("permute.default", packed, [2, 0, 3, 1, 4])
        q, k, v = b.items(b.call("unbind.int", moved))
    else:
        parts = attention_parts(b, x, whole, kind)
        shape = [batch, length, heads, inner]
        cut = [b.call("reshape.default", part, shape) for part in parts]
        q, k, v = (b.call("transpose.int", part, 1, 2) for part in cut)
    mixed = fused(b, q, k, v) if b.chance(0.5) else written_out(b, q, k, v)
    joined = b.call("transpose.int", mixed, 1, 2)
    flat = b.call("reshape.default", joined, [batch, length, b.choose([whole, -1])])
    b.put(b.call("add.Tensor", x, mapped(b, flat, b.shape(x)[2])))


def attention_parts(b: Drawing, x: Node, whole: int, kind: str) -> list[Node]:
    if kind == "apart":
        return [mapped(b, x, whole) for _ in range(3)]
    packed = mapped(b, x, 3 * whole)
    key, size = ("chunk.default", 3) if kind == "chunk" else ("split.Tensor", whole)
    return b.items(b.call(key, packed, size, -1))


def fused(b: Drawing, q: Node, k: Node, v: Node) -> Node:
    if b.chance(0.5):
        return b.call("scaled_dot_product_attention.default", q, k, v)
    scale = b.shape(q)[-1] ** -0.5
    node = b.call("scaled_dot_product_attention.default", q, k, v, scale=scale)
    b.scales[node.name] = Scale(q.name, b.rank(q) - 1, -0.5)
    return node


def written_out(b: Drawing, q: Node, k: Node, v: Node) -> Node:
    """Attention by explicit products, with the scale on the queries or on the product."""
    size, kind = b.shape(q)[-1], b.choose(["before", "mul", "div"])
    query = b.call("mul.Tensor", q, size**-0.5) if kind == "before" else q
    product = b.call("matmul.default", query, b.call("transpose.int", k, -2, -1))
    node = query
    if kind != "before":
        power = -0.5 if kind == "mul" else 0.5
        node = product = b.call(f"{kind}.Tensor", product, size**power)
    b.scales[node.name] = Scale(q.name, b.rank(q) - 1, 0.5 if kind == "div" else -0.5)
    return b.call("matmul.default", b.call("softmax.int", product, -1), v)


def residual(b: Drawing) -> None:
    """A residual MLP along the last dimension, with a norm and an activation."""
    x = b.pick()
    width = b.shape(x)[-1]
    y = b.call("layer_norm.default", x, [width], b.weight(width), b.weight(width))
    y = b.call(b.choose(["relu.default", "gelu.default"]), mapped(b, y, 2 * width))
    b.put(b.call("add.Tensor", x, mapped(b, y, width)))


def residual_map(b: Drawing) -> None:
    """A residual block of two convolutions, the second depthwise or not."""
    x = places(b, b.choose([1, 2]))
    width, extents = b.shape(x)[1], b.rank(x) - 2
    options, y = ([1] * extents, [1] * extents, [1] * extents), x
    for groups in (1, b.choose([1, width])):
        weight = b.weight(width, width // groups, *[3] * extents)
        y = b.call("relu.default", y)
        y = b.call(f"conv{extents}d.default", y, weight, None, *options, groups)
    b.put(b.call("add.Tensor", x, y))


def recurrent(key: str, gates: int) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick(3, lambda node: b.is_batch(node, 0) and not b.is_batch(node, 2))
        width, size = b.width(), b.shape(x)[2]
        both = b.chance(0.4)
        count = 2 if both else 1
        state = b.call("zeros.default", [count, b.literals(x)[0], width], dtype=torch.float64)
        shapes = [(gates * width, size), (gates * width, width), (gates * width,), (gates * width,)]
        weights = [b.weight(*shape) for _ in range(count) for shape in shapes]
        hidden = [state, state] if key.startswith("lstm") else state
        options = (True, 1, 0.0, False, both, True)
        b.put(b.item(b.call(key, x, hidden, weights, *options), 0))

    return step
