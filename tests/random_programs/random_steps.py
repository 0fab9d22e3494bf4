"""Steps of random programs that compute: pointwise calls, norms, resampling, contractions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from random_programs.random_drawing import Drawing, Unfit
from torch.fx import Node

Step = Callable[[Drawing], None]


# Pointwise


def unary(key: str, *rest: Any, **kwargs: Any) -> Step:
    def step(b: Drawing) -> None:
        b.put(b.call(key, b.pick(), *rest, **kwargs))

    return step


def first_of(key: str, *rest: Any) -> Step:
    """The first result of a call with several results."""

    def step(b: Drawing) -> None:
        b.put(b.item(b.call(key, b.pick(), *rest), 0))

    return step


def mate(b: Drawing, x: Node) -> Node:
    """A value that broadcasts with `x`: an existing one, a part of `x`, or a weight."""
    shape = b.shape(x)
    same = [y for y in b.pool if y is not x and b.shape(y) == shape]
    if same and b.chance(0.6):
        return b.choose(same)
    if b.chance(0.3):
        return b.call("mean.dim", x, [b.dim(x, 1)], True)
    sizes = [1 if b.is_batch(x, dim) or b.chance(0.3) else size for dim, size in enumerate(shape)]
    while len(sizes) > 1 and sizes[0] == 1 and b.chance(0.5):
        del sizes[0]
    return b.weight(*sizes)


def binary(key: str, *rest: Any) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        pair = [x, mate(b, x)]
        b.random.shuffle(pair)
        b.put(b.call(key, *pair, *rest))

    return step


def table(b: Drawing) -> None:
    """A product with a table that is not trained, one number per index of a dimension."""
    x = b.pick()
    dim = b.dim(x)
    sizes = [size if d == dim else 1 for d, size in enumerate(b.shape(x))]
    values = torch.arange(1, b.shape(x)[dim] + 1).double() / 7
    b.put(b.call("mul.Tensor", x, b.table(values.view(sizes))))


def mask(b: Drawing, x: Node) -> Node:
    return b.call("gt.Scalar", mate(b, x), 0.1)


def masked_fill(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("masked_fill.Scalar", x, mask(b, x), 0.7))


def where(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("where.self", mask(b, x), x, mate(b, x)))


def scalar(b: Drawing) -> None:
    b.put(b.call(b.choose(["mul.Tensor", "div.Tensor", "add.Tensor"]), b.pick(), 1.7))


def prelu(b: Drawing) -> None:
    x = b.pick()
    slopes = 1 if b.is_batch(x, 1) or b.chance(0.2) else b.shape(x)[1]
    b.put(b.call("prelu.default", x, b.weight(slopes)))


def prelu_kernel(b: Drawing) -> None:
    x = b.pick()
    dim = b.dim(x)
    sizes = [size if d == dim else 1 for d, size in enumerate(b.shape(x))]
    b.put(b.call("_prelu_kernel.default", x, b.weight(*sizes)))


def glu(b: Drawing) -> None:
    x = b.pick()
    even = [dim for dim in b.fixed_dims(x) if b.shape(x)[dim] % 2 == 0]
    b.put(b.call("glu.default", x, b.signed(x, b.choose(even))))


# One dimension at a time


def along(key: str, *rest: Any, form: Callable[[int], Any] = lambda dim: dim) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        result = b.call(key, x, form(b.signed(x, b.dim(x))), *rest)
        b.put(b.item(result, 0) if isinstance(b.metas[result][0], tuple) else result)

    return step


def roll(b: Drawing) -> None:
    x = b.pick()
    b.put(b.call("roll.default", x, [2], [b.dim(x)]))


def median(b: Drawing) -> None:
    """Takes a contiguous copy: torch 2.15 reads beyond an expanded tensor."""
    x = b.call("clone.default", b.pick(), memory_format=torch.contiguous_format)
    b.put(b.item(b.call("median.dim", x, b.signed(x, b.dim(x)), b.chance(0.5)), 0))


def reduced(
    key: str, *before: Any, several: bool = True, keeps: bool = True, **kwargs: Any
) -> Step:
    """Reduces one or more dimensions; with keepdim the result may be combined with its source."""

    def step(b: Drawing) -> None:
        x = b.pick()
        dims = [b.signed(x, b.dim(x, 1))]
        if several and len(b.fixed_dims(x, 1)) > 1 and b.chance(0.3):
            dims = b.random.sample(b.fixed_dims(x, 1), 2)
        keepdim = keeps and b.chance(0.5)
        more = (keepdim,) if keeps and not kwargs else ()
        options = {**kwargs, "keepdim": keepdim} if kwargs else {}
        result = b.call(key, x, *before, dims if several else dims[0], *more, **options)
        result = b.item(result, 0) if isinstance(b.metas[result][0], tuple) else result
        if keepdim and b.metas[result][0].is_floating_point() and b.chance(0.5):
            result = b.call("mul.Tensor", x, result)
        b.put(result)

    return step


def vector_norm(b: Drawing) -> None:
    """Uses keepdim: without it, torch 2.11 still keeps the dimension on the meta device."""
    x = b.pick()
    b.put(b.call("norm.ScalarOpt_dim", x, 2, [b.signed(x, b.dim(x, 1))], True))


# Norms


def batch_norm(b: Drawing) -> None:
    x = b.pick(fits=lambda node: not b.is_batch(node, 1))
    width = b.shape(x)[1]
    affine = [b.weight(width), b.weight(width)]
    statistics = [b.table(torch.rand(width).double() + 0.5) for _ in range(2)]
    options = (False, 0.1, 1e-5, False)
    b.put(b.call("batch_norm.default", x, *affine, *statistics, *options))


def instance_norm(b: Drawing) -> None:
    x = b.pick(fits=lambda node: b.rank(node) > 2 and not b.is_batch(node, 1), lowest=3)
    affine = [b.weight(b.shape(x)[1]), b.weight(b.shape(x)[1])] if b.chance(0.7) else [None, None]
    options = (None, None, True, 0.1, 1e-5, False)
    b.put(b.call("instance_norm.default", x, *affine, *options))


def trailing_norm(key: str, has_bias: bool, *rest: Any) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        count = b.choose([1, 1, 2]) if b.rank(x) > 2 else 1
        if any(b.is_batch(x, dim) for dim in range(-count, 0)):
            raise Unfit
        shape = list(b.shape(x)[-count:])
        weights = [b.weight(*shape) for _ in range(1 + has_bias)]
        result = b.call(key, x, shape, *weights, *rest)
        b.put(b.item(result, 0) if isinstance(b.metas[result][0], tuple) else result)

    return step


def group_norm(b: Drawing) -> None:
    x = b.pick(fits=lambda node: not b.is_batch(node, 1))
    width = b.shape(x)[1]
    groups = b.divisor(width)
    b.put(b.call("group_norm.default", x, groups, b.weight(width), b.weight(width)))


# Maps: pooling, resampling, padding


def places(b: Drawing, extents: int, *, lowest: int = 4) -> Node:
    """A value whose trailing dimensions can be spatial."""

    def fits(node: Node) -> bool:
        dims = range(extents + 2)[-extents:]
        return all(not b.is_batch(node, d) and b.shape(node)[d] >= lowest for d in dims)

    try:
        return b.pick(extents + 2, fits)
    except Unfit:
        if b.is_closed:
            raise
        return b.fresh(extents + 2, is_map=True)


def resampled(key: str, extents: int, size: int, *rest: Any) -> Step:
    def step(b: Drawing) -> None:
        result = b.call(key, places(b, extents), [size] * extents, *rest)
        b.put(b.item(result, 0) if isinstance(b.metas[result][0], tuple) else result)

    return step


def padded(key: str, extents: int) -> Step:
    def step(b: Drawing) -> None:
        pads = [b.choose([0, 1, 2]) for _ in range(2 * extents)]
        b.put(b.call(key, places(b, extents), pads))

    return step


def constant_pad(key: str, *rest: Any) -> Step:
    def step(b: Drawing) -> None:
        x = b.pick()
        pads: list[int] = []
        for dim in reversed(range(b.choose([0, 1, b.rank(x) - 1]), b.rank(x))):
            moves = b.is_batch(x, dim) or b.chance(0.4)
            pads += [0, 0] if moves else [b.choose([0, 1, 3, -1]), b.choose([0, 2, 4])]
        b.put(b.call(key, x, pads, *rest))

    return step


def grid_sampler(b: Drawing) -> None:
    x = places(b, 2)
    if not b.is_batch(x, 0):
        raise Unfit
    grid = b.table(torch.rand(1, 3, 4, 2).double() * 2 - 1)
    batch = b.literals(x)[0]
    grid = b.call("expand.default", grid, [batch, -1, -1, -1])
    b.put(b.call("grid_sampler.default", x, grid, 0, 0, False))


# Contractions


def linear(b: Drawing) -> None:
    x = b.pick(fits=lambda node: not b.is_batch(node, b.rank(node) - 1))
    b.put(mapped(b, x, b.width()))


def computed_weight(b: Drawing) -> None:
    """A linear layer whose weight is transposed or standardized before use."""
    x = b.pick(fits=lambda node: not b.is_batch(node, b.rank(node) - 1))
    width, size = b.width(), b.shape(x)[-1]
    if b.chance(0.5):
        weight = b.call("t.default", b.weight(size, width))
    else:
        weight = b.weight(width, size)
        weight = b.call("sub.Tensor", weight, b.call("mean.dim", weight, [1], True))
    b.put(b.call("linear.default", x, weight))


def mapped(b: Drawing, x: Node, width: int) -> Node:
    bias = [b.weight(width)] if b.chance(0.5) else []
    return b.call("linear.default", x, b.weight(width, b.shape(x)[-1]), *bias)


def groups_of(b: Drawing, width: int) -> int:
    return b.choose([1, 1, width, b.divisor(width)])


def convolved(key: str, extents: int) -> Step:
    """A convolution with random groups, stride, padding and dilation."""
    transposed = "transpose" in key

    def step(b: Drawing) -> None:
        x = places(b, extents)
        if b.is_batch(x, 1):
            raise Unfit
        width = b.shape(x)[1]
        groups = groups_of(b, width)
        kernel = [b.choose([1, 3])] * extents
        out = groups * b.choose([1, 1, 2, 3])
        shape = (width, out // groups) if transposed else (out, width // groups)
        weights = [b.weight(*shape, *kernel), b.weight(out) if b.chance(0.5) else None]
        stride, padding = [b.choose([1, 2])] * extents, [kernel[0] // 2] * extents
        ones, zeros = [1] * extents, [0] * extents
        if key.endswith("padding"):
            options: tuple[Any, ...] = (ones, "same", ones, groups)
        elif transposed:
            options = (stride, padding, zeros, groups, ones)
        else:
            options = (stride, padding, ones, groups)
        b.put(b.call(key, x, *weights, *options))

    return step


def matmul(b: Drawing) -> None:
    x = b.pick()
    last = b.rank(x) - 1
    if b.chance(0.4) and last > 1:
        other = b.choose([y for y in b.pool if b.shape(y) == b.shape(x)])
        return b.put(b.call("matmul.default", x, b.call("mT.default", other)))
    if b.is_batch(x, last):
        raise Unfit
    shape = (b.shape(x)[last],) if b.chance(0.2) else (b.shape(x)[last], b.width())
    return b.put(b.call("matmul.default", x, b.weight(*shape)))


def plain_product(key: str) -> Step:
    """mm, mv and addmm: the product of a matrix and a weight."""

    def step(b: Drawing) -> None:
        x = b.pick(2)
        if b.is_batch(x, 1):
            raise Unfit
        inner, out = b.shape(x)[1], b.width()
        weight = b.weight(inner) if key.startswith("mv") else b.weight(inner, out)
        first = [b.weight(out)] if key.startswith("addmm") else []
        b.put(b.call(key, *first, x, weight))

    return step


def batched_product(key: str) -> Step:
    """bmm and baddbmm: the product of a value with itself."""

    def step(b: Drawing) -> None:
        x = b.pick(3)
        product = b.call("bmm.default", x, b.call("transpose.int", x, 1, 2))
        if key.startswith("baddbmm"):
            product = b.call(key, x, product, x)
        b.put(product)

    return step


_EQUATIONS = {
    "nd,kd->nk": 2,
    "nld,kd->nlk": 3,
    "nld, dk -> nkl": 3,
    "nld,nmd->nlm": 3,
    "nchw,kc->nkhw": 4,
    "bhld,hde->blhe": 4,
    "bhld,bhmd->bhlm": 4,
    "nd,dk": 2,
}


def einsum(b: Drawing) -> None:
    equation = b.choose(list(_EQUATIONS))
    x = b.pick(_EQUATIONS[equation])
    one, other = equation.split("->")[0].replace(" ", "").split(",")
    if set(one[:1]) & set(other):
        second = x
    else:
        if any(b.is_batch(x, one.index(letter)) for letter in other if letter in one):
            raise Unfit
        sizes = [b.shape(x)[one.index(n)] if n in one else b.width() for n in other]
        second = b.weight(*sizes)
    b.put(b.call("einsum.default", equation, [x, second]))


def embedding(b: Drawing) -> None:
    x = b.input(5, dtype=torch.int64)
    b.put(b.call("embedding.default", b.weight(6, b.width()), x))


def one_hot(b: Drawing) -> None:
    """The one-hot rows of an argmax, through a linear layer."""
    x = b.pick()
    dim = b.dim(x)
    rows = b.call("one_hot.default", b.call("argmax.default", x, dim), b.shape(x)[dim])
    b.put(mapped(b, b.call("to.dtype", rows, torch.float64), b.width()))
