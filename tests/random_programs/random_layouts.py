"""Steps of random programs that move, regroup, join and take apart; and calls without a rule."""

from __future__ import annotations

from typing import Any

import torch
from random_programs.random_drawing import BATCH_SIZES, Drawing, Unfit
from random_programs.random_steps import Step
from torch.fx import Node

# Regrouping


def regrouped(b: Drawing, x: Node) -> list[int | Node]:
    """Sizes for a reshape: dimensions cut in two or merged; one of them may be -1."""
    sizes: list[int | Node] = b.literals(x)
    for _ in range(b.choose([1, 1, 2, 3])):
        at = b.random.randrange(len(sizes))
        size, following = sizes[at], sizes[at + 1 : at + 2]
        if isinstance(size, int) and b.chance(0.6):
            outer = b.divisor(size)
            sizes[at : at + 1] = [outer, size // outer]
        elif following:
            sizes[at : at + 2] = [merged(b, size, following[0])]
    if b.chance(0.3):
        sizes[b.random.randrange(len(sizes))] = -1
    return sizes


def merged(b: Drawing, one: int | Node, other: int | Node) -> int | Node:
    """The product of two sizes of which one at most holds the batch."""
    if isinstance(one, int) and isinstance(other, int):
        return one * other
    if isinstance(one, Node) and isinstance(other, Node):
        raise Unfit
    node, count = (one, other) if isinstance(one, Node) else (other, one)
    assert isinstance(node, Node) and isinstance(count, int)
    return b.number(b.metas[node][0] // BATCH_SIZES[0] * count)


def reshape(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        x = b.call("contiguous.default", x) if "view" in key and b.chance(0.5) else x
        b.put(b.call(key, x, regrouped(b, x)))

    return step


def reshape_like(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.call("contiguous.default", b.pick())
        like = b.call("reshape.default", b.call("tanh.default", x), regrouped(b, x))
        b.put(b.call("mul.Tensor", b.call(key, x, like), like))

    return step


def flatten(b: Drawing) -> None:
    x = b.pick(lowest=3)
    start = b.random.randrange(b.rank(x) - 1)
    b.put(b.call("flatten.using_ints", x, start, b.choose([start + 1, -1])))


def unflatten(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    outer = b.divisor(b.shape(x)[dim])
    sizes = b.choose([[outer, b.shape(x)[dim] // outer], [outer, -1]])
    b.put(b.call("unflatten.int", x, b.signed(x, dim), sizes))


def squeeze(b: Drawing) -> None:
    x = b.pick()
    dim = b.random.randrange(b.rank(x) + 1)
    grown = b.call("unsqueeze.default", x, dim)
    b.put(b.call("squeeze.dim", b.call("relu.default", grown), dim))


def unsqueeze(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("unsqueeze.default", x, b.random.randrange(-1, b.rank(x) + 1)))


def atleast_3d(b: Drawing) -> None:
    b.put(b.call("atleast_3d.default", b.pick(b.choose([2, 3]))))


def shuffle(b: Drawing) -> None:
    """Groups of channels interleaved, written out."""
    x = b.pick(fits=lambda node: not b.is_batch(node, 1))
    sizes = b.literals(x)
    groups = b.divisor(b.shape(x)[1])
    cut = [sizes[0], groups, b.shape(x)[1] // groups, *sizes[2:]]
    moved = b.call("transpose.int", b.call("reshape.default", x, cut), 1, 2)
    back = b.choose(["reshape", "flatten"])
    if back == "flatten":
        return b.put(b.call("flatten.using_ints", moved, 1, 2))
    return b.put(b.call("reshape.default", moved, sizes))


def windows(b: Drawing) -> None:
    """Maps cut into windows beside the batch, and put together again."""
    x = b.pick(4, lambda node: b.shape(node)[2] % 2 == 0 and b.shape(node)[3] % 2 == 0)
    if not b.is_batch(x, 0) or len(b.fixed_dims(x, 1)) < 3:
        raise Unfit
    batch, channels, height, width = b.literals(x)
    assert isinstance(channels, int) and isinstance(height, int) and isinstance(width, int)
    cut = [batch, channels, height // 2, 2, width // 2, 2]
    moved = b.call("permute.default", b.call("reshape.default", x, cut), [0, 2, 4, 3, 5, 1])
    tokens = b.call(
        "reshape.default", moved, [b.choose([-1, batch_of(b, x, height * width // 4)]), 4, channels]
    )
    mapped = b.call("linear.default", tokens, b.weight(channels, channels))
    apart = b.call("reshape.default", mapped, [batch, height // 2, width // 2, 2, 2, -1])
    back = b.call("permute.default", apart, [0, 5, 1, 3, 2, 4])
    b.put(b.call("reshape.default", back, [batch, channels, height, width]))


def batch_of(b: Drawing, x: Node, count: int) -> Node:
    return b.number(b.shape(x)[0] // BATCH_SIZES[0] * count)


def pixel_shuffle(b: Drawing) -> None:
    x = b.pick(4, lambda n: b.shape(n)[1] % 4 == 0 and len(b.fixed_dims(n, 1)) > 2)
    b.put(b.call("pixel_shuffle.default", x, 2))


def pixel_unshuffle(b: Drawing) -> None:
    b.put(b.call("pixel_unshuffle.default", b.pick(4), 2))


def channel_shuffle(b: Drawing) -> None:
    x = b.pick(lowest=3)
    if b.is_batch(x, 1):
        raise Unfit
    b.put(b.call("channel_shuffle.default", x, b.divisor(b.shape(x)[1])))


def im2col(b: Drawing) -> None:
    b.put(b.call("im2col.default", b.pick(4), [2, 2], [1, 1], [0, 0], [2, 2]))


def unfold(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("unfold.default", x, b.dim(x, 4), 2, b.choose([1, 2])))


# Moving


def permute(b: Drawing) -> None:
    x = b.pick()
    order = b.random.sample(range(b.rank(x)), b.rank(x))
    b.put(b.call("permute.default", x, [b.signed(x, dim) for dim in order]))


def swapped(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        one, other = b.random.sample(range(b.rank(x)), 2)
        b.put(b.call(key, x, b.signed(x, one), b.signed(x, other)))

    return step


def moveaxis(b: Drawing) -> None:
    x = b.pick()
    sources, targets = (b.random.sample(range(b.rank(x)), 2) for _ in range(2))
    b.put(b.call("moveaxis.intlist", x, sources, targets))


def matrix(key: str) -> Step:
    """Calls for matrices only."""

    def step(b: Drawing) -> None:
        b.put(b.call(key, b.pick(2)))

    return step


# Growing


def expand(b: Drawing) -> None:
    """A value, or a weight, repeated along new dimensions."""
    x = b.pick()
    sizes = b.literals(x)
    if b.chance(0.5):
        kept = b.weight(*[1 if isinstance(size, Node) else size for size in sizes])
        grown = b.call(
            "expand.default",
            kept,
            [s if isinstance(s, Node) or b.chance(0.5) else -1 for s in sizes],
        )
        return b.put(b.call("add.Tensor", grown, x))
    grown = b.call("unsqueeze.default", x, 1)
    count = b.width()
    return b.put(b.call("expand.default", grown, [-1, count, *[-1] * (b.rank(x) - 1)]))


def expand_as(b: Drawing) -> None:
    x = b.pick()
    part = b.call("mean.dim", x, [b.dim(x, 1)], True)
    b.put(b.call("expand_as.default", part, x))


def repeated(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        counts = [b.choose([1, 1, 2, 3]) for _ in range(b.rank(x) + b.choose([0, 0, 1]))]
        b.put(b.call(key, x, counts))

    return step


def repeat_interleave(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("repeat_interleave.self_int", x, b.choose([2, 3]), b.signed(x, b.dim(x, 1))))


# Making


def made(key: str, *rest: Any) -> Step:
    """Filled with one number, laid beside the value that it has the sizes of."""

    def step(b: Drawing) -> None:
        x = b.pick()
        dim = b.dim(x, 1)
        sizes = b.literals(x)
        sizes[dim] = b.width()
        first = (x,) if key.startswith("new") else ()
        made = b.call(key, *first, sizes, *rest, dtype=torch.float64)
        if key.startswith("empty"):
            made = b.call("ones_like.default", made)
        b.put(b.call("cat.default", [made, x], dim))

    return step


def noise(key: str) -> Step:
    """Other numbers in each run: only their shape goes on."""

    def step(b: Drawing) -> None:
        b.put(b.call("ones_like.default", b.call(key, b.pick())))

    return step


# Without a rule


def square(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick(3)
        b.put(b.call(key, b.call("bmm.default", x, b.call("transpose.int", x, 1, 2))))

    return step


def diff(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("diff.default", x, 1, b.dim(x)))


def gather(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    order = b.call("argsort.default", x, dim)
    b.put(b.call("gather.default", x, dim, order))
