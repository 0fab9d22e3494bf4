"""Steps of random programs that concatenate, split and index values."""

from __future__ import annotations

from typing import Any

import torch
from random_programs.random_drawing import Drawing, Unfit
from random_programs.random_steps import Step
from torch.fx import Node

# Joining and taking apart


def cat(key: str) -> Step:
    """A concatenation of a value with others that fit it, or with tokens of the same width."""

    def step(b: Drawing) -> None:
        x = b.pick()
        dim = b.dim(x, 1)
        parts = [x, *(beside(b, x, dim) for _ in range(b.choose([1, 1, 2])))]
        b.random.shuffle(parts)
        b.put(b.call(key, parts, b.signed(x, dim)))

    return step


def beside(b: Drawing, x: Node, dim: int) -> Node:
    """A value of the shape of `x` except along one dimension."""
    rest = [size for d, size in enumerate(b.shape(x)) if d != dim]
    fitting = [
        y
        for y in b.pool
        if b.rank(y) == b.rank(x)
        and [size for d, size in enumerate(b.shape(y)) if d != dim] == rest
        and [b.is_batch(y, d) for d in range(b.rank(y))]
        == [b.is_batch(x, d) for d in range(b.rank(x))]
    ]
    if fitting and b.chance(0.7):
        return b.choose(fitting)
    sizes = b.literals(x)
    sizes[dim] = b.width()
    tokens = b.weight(*[1 if isinstance(size, Node) else size for size in sizes])
    return b.call("expand.default", tokens, [s if isinstance(s, Node) else -1 for s in sizes])


def stack(b: Drawing) -> None:
    x = b.pick()
    same = [y for y in b.pool if b.shape(y) == b.shape(x)]
    parts = [x, b.choose(same), b.call("tanh.default", x)][: b.choose([2, 3])]
    b.put(b.call("stack.default", parts, b.random.randrange(-1, b.rank(x) + 1)))


def unbind(b: Drawing) -> None:
    x = b.pick()
    dim = b.choose([d for d in b.fixed_dims(x) if b.shape(x)[d] < 5])
    b.put(*b.items(b.call("unbind.int", x, b.signed(x, dim))))


def split_evenly(key: str) -> Step:
    """A split by the size of a piece."""

    def step(b: Drawing) -> None:
        x = b.pick()
        dim = b.dim(x)
        size = b.choose([b.divisor(b.shape(x)[dim]), b.random.randrange(1, b.shape(x)[dim])])
        if b.shape(x)[dim] > 6 * size:
            raise Unfit
        b.put(*b.items(b.call(key, x, size, b.signed(x, dim))))

    return step


def split_by_sizes(key: str) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        dim = b.dim(x)
        first = b.random.randrange(1, b.shape(x)[dim])
        b.put(*b.items(b.call(key, x, [first, b.shape(x)[dim] - first], b.signed(x, dim))))

    return step


def chunk(key: str) -> Step:
    """A split by the number of pieces."""

    def step(b: Drawing) -> None:
        x = b.pick()
        dim = b.dim(x)
        b.put(*b.items(b.call(key, x, b.choose([2, 2, 3]), b.signed(x, dim))))

    return step


def tensor_split_at(b: Drawing) -> None:
    x = b.pick()
    b.put(*b.items(b.call("tensor_split.indices", x, [1], b.dim(x))))


def select(b: Drawing) -> None:
    x = b.pick(lowest=3)
    b.put(b.call("select.int", x, b.signed(x, b.dim(x, 1)), b.choose([0, -1])))


def slice_(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    size = b.shape(x)[dim]
    start = b.choose([None, 0, b.random.randrange(size), -b.random.randrange(1, size)])
    end = b.choose([None, 2**63 - 1, b.random.randrange(1, size + 1), -1])
    b.put(b.call("slice.Tensor", x, b.signed(x, dim), start, end, b.choose([1, 1, 1, 2])))


def slice_scatter(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    start = b.random.randrange(b.shape(x)[dim])
    end = b.random.randrange(start + 1, b.shape(x)[dim] + 1)
    piece = b.call("mul.Tensor", b.call("slice.Tensor", x, dim, start, end), 1.7)
    b.put(b.call("slice_scatter.default", x, piece, b.signed(x, dim), start, end))


def select_scatter(b: Drawing) -> None:
    x = b.pick(lowest=3)
    dim, index = b.dim(x, 1), b.choose([0, -1])
    row = b.call("mul.Tensor", b.call("select.int", x, dim, index), 1.7)
    b.put(b.call("select_scatter.default", x, row, b.signed(x, dim), index))


def narrow(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    start = b.random.randrange(b.shape(x)[dim])
    length = b.random.randrange(1, b.shape(x)[dim] - start + 1)
    b.put(b.call("narrow.default", x, b.signed(x, dim), start, length))


def halves(b: Drawing) -> None:
    """Slices a value into two parts, changes one and concatenates them."""
    x = b.pick()
    dim = b.dim(x)
    at = b.random.randrange(1, b.shape(x)[dim])
    one = b.call("slice.Tensor", x, dim, 0, at)
    other = b.call("slice.Tensor", x, dim, at, 2**63 - 1)
    b.put(b.call("cat.default", [b.call("tanh.default", one), other], dim))


def places_of(b: Drawing, size: int, *shape: int) -> Node:
    """A table of indices below a size."""
    return b.table(torch.randint(0, size, shape, generator=torch.Generator().manual_seed(size)))


def index_select(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x, 1)
    b.put(b.call("index_select.default", x, b.signed(x, dim), places_of(b, b.shape(x)[dim], 3)))


def index(b: Drawing) -> None:
    x = b.pick()
    dims = b.fixed_dims(x, 1)
    taken = b.random.sample(dims, min(len(dims), b.choose([1, 1, 2])))
    indices: list[Any] = [None] * b.rank(x)
    for dim in taken:
        indices[dim] = places_of(b, b.shape(x)[dim], *b.choose([(3,), (2, 3)])[-1:])
    while indices and indices[-1] is None and b.chance(0.5):
        indices.pop()
    b.put(b.call("index.Tensor", x, indices))
