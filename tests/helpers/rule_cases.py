"""A call for every axis rule, and the sizes that the rule must leave free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """A call: the shapes of its trained tensors, or tables; its arguments; the sizes left free."""

    tensors: list
    arguments: Callable
    free: set[int]
    is_exact: bool = True
    """Whether the call on the kept part of its tensors returns the kept part of its result."""
    plus: tuple[int, ...] | None = None
    """The shape of one more trained tensor that is added to the result."""


def table(*values: int) -> Tensor:
    return torch.tensor(values)


def at_2d(*rest):
    """A call on a map of 3 x 2 channels on 8 x 8 places."""
    return Case([(3, 2, 8, 8)], lambda a: (a, *rest), {3, 2})


def at_1d(*rest):
    return Case([(3, 2, 8)], lambda a: (a, *rest), {3, 2})


def at_3d(*rest):
    return Case([(3, 2, 4, 4, 4)], lambda a: (a, *rest), {3, 2})


def same(*rest):
    return Case([(3, 4)], lambda a: (a, *rest), {3, 4})


def reduced(*rest, is_exact=False):
    return Case([(3, 4, 5)], lambda a: (a, *rest), {3, 4, 5}, is_exact)


def convolved(rank, *rest, transposed=False):
    """With `rest` the map keeps its size; otherwise its border is lost."""
    weight = (6, 4) if transposed else (4, 6)
    shapes = [(3, 6, *[7] * rank), (*weight, *[3] * rank), (4,)]
    free = {3, 4, 6, 7} if rest and rest[0] == [1, 1] else {3, 4, 6}
    return Case(shapes, lambda a, w, b: (a, w, b, *rest), free, is_exact=False)


def recurrent(gates, *states, layers=1, directions=1, biases=True, batch_first=False):
    """5 steps of a batch of 3 with 6 features through states of 4."""
    shapes = [(3, 5, 6) if batch_first else (5, 3, 6), *[(layers * directions, 3, 4)] * len(states)]
    for layer in range(layers):
        features = 6 if layer == 0 else 4 * directions
        one = [(4 * gates, features), (4 * gates, 4), *[(4 * gates,)] * (2 if biases else 0)]
        shapes += one * directions

    def arguments(x, *rest):
        given, params = list(rest[: len(states)]), list(rest[len(states) :])
        options = (biases, layers, 0.0, False, directions == 2, batch_first)
        return (x, given if len(given) > 1 else given[0], params, *options)

    return Case(shapes, arguments, {4, 6}, is_exact=False)


_CONV = ([1, 1], [1, 1], [1, 1])
_HALF = ([2], [2])

CASES: dict[str, Case] = {
    # elementwise
    "prelu.default": Case([(3, 4, 5), (4,)], lambda a, w: (a, w), {3, 4, 5}),
    "prelu.default one slope": Case([(3, 4), (1,)], lambda a, w: (a, w), {3, 4}),
    "_prelu_kernel.default": Case([(3, 4), (1, 4)], lambda a, w: (a, w), {3, 4}),
    "glu.default": Case([(3, 8)], lambda a: (a, 1), {3, 4}),
    "group_norm.default": Case(
        [(5, 6), (6,), (6,)], lambda a, w, b: (a, 2, w, b), {5, 2, 3}, is_exact=False
    ),
    "constant_pad_nd.default": Case([(3, 4)], lambda a: (a, [1, 2], 7.0), {3, 4}),
    "constant_pad_nd.default scaled": Case(
        [(3, 4)], lambda a: (a, [3, 2], 0.0), {3, 4, 2}, plus=(3, 9)
    ),
    "constant_pad_nd.default cut": Case([(3, 4)], lambda a: (a, [-1, 2], 0.0), {3}),
    "pad.default": Case([(3, 4, 5)], lambda a: (a, [0, 0, 2, 2], "constant", None), {3, 4, 5}),
    "batch_norm.default": Case(
        [(5, 4), (4,), (4,), (4,), (4,)],
        lambda a, w, b, m, v: (a, w, b, m, v, False, 0.1, 1.0, False),
        {5, 4},
        is_exact=False,
    ),
    "instance_norm.default": Case(
        [(5, 4, 6), (4,), (4,)],
        lambda a, w, b: (a, w, b, None, None, True, 0.1, 1e-5, False),
        {5, 4, 6},
        is_exact=False,
    ),
    "layer_norm.default": Case(
        [(5, 4), (4,), (4,)], lambda a, w, b: (a, [4], w, b), {5, 4}, is_exact=False
    ),
    "rms_norm.default": Case([(5, 4), (4,)], lambda a, w: (a, [4], w), {5, 4}, is_exact=False),
    "_fused_rms_norm.default": Case(
        [(5, 4), (4,)], lambda a, w: (a, [4], w, 1e-5), {5, 4}, is_exact=False
    ),
    "masked_fill.Scalar": Case(
        [(3, 4), torch.zeros(3, 4, dtype=torch.bool)], lambda a, m: (a, m, 1.0), set()
    ),
    "where.self": Case(
        [(3, 4), (4,), torch.ones(3, 1, dtype=torch.bool)], lambda a, b, m: (m, a, b), {4}
    ),
    "type_as.default": Case([(3, 4), (3, 4)], lambda a, b: (a, b), {3, 4}),
    "lerp.Scalar": Case([(3, 4), (3, 1)], lambda a, b: (a, b, 0.5), {3, 4}),
    "hardswish.default": same(),
    "alias.default": same(),
    "clone.default": same(),
    "contiguous.default": same(),
    "detach.default": same(),
    "lift_fresh_copy.default": same(),
    "to.dtype": same(torch.float64),
    "_to_copy.default": same({"dtype": torch.float64}),
    "hardtanh.default": same(-0.5, 0.5),
    "rrelu.default": same(),
    "dropout.default": same(0.5, False),
    "feature_dropout.default": same(0.5, False),
    "alpha_dropout.default": same(0.5, False),
    "native_dropout.default": same(0.5, False),
    "softmax.int": Case([(3, 4)], lambda a: (a, 1), {3, 4}, is_exact=False),
    "_softmax.default": Case([(3, 4)], lambda a: (a, 1, False), {3, 4}, is_exact=False),
    "log_softmax.int": Case([(3, 4)], lambda a: (a, 1), {3, 4}, is_exact=False),
    "_log_softmax.default": Case([(3, 4)], lambda a: (a, 1, False), {3, 4}, is_exact=False),
    "empty_like.default": Case([(3, 4)], lambda a: (a,), {3, 4}, is_exact=False),
    "ones_like.default": same(),
    "zeros_like.default": same(),
    "full_like.default": same(2.0),
    "rand_like.default": Case([(3, 4)], lambda a: (a,), {3, 4}, is_exact=False),
    "randn_like.default": Case([(3, 4)], lambda a: (a,), {3, 4}, is_exact=False),
    "cumsum.default": Case([(3, 4)], lambda a: (a, 1), {3}),
    "cumprod.default": Case([(3, 4)], lambda a: (a, -1), {3}),
    "flip.default": Case([(3, 4)], lambda a: (a, [1]), {3}),
    "roll.default": Case([(3, 4)], lambda a: (a, [1], [1]), {3}),
    "roll.default flat": Case([(3, 4)], lambda a: (a, [1]), set()),
    "sort.default": Case([(3, 4)], lambda a: (a, 1), {3}),
    "argsort.default": Case([(3, 4)], lambda a: (a, 1), {3}),
    "avg_pool1d.default": at_1d(*_HALF),
    "avg_pool2d.default": at_2d(*_HALF),
    "avg_pool2d.default unbatched": Case([(2, 8, 8)], lambda a: (a, [2], [2]), {2}),
    "avg_pool3d.default": at_3d(*_HALF),
    "max_pool1d.default": at_1d(*_HALF),
    "max_pool2d.default": at_2d([3], [1], [1]),
    "max_pool3d.default": at_3d(*_HALF),
    "max_pool1d_with_indices.default": at_1d(*_HALF),
    "max_pool2d_with_indices.default": at_2d(*_HALF),
    "max_pool3d_with_indices.default": at_3d(*_HALF),
    "adaptive_avg_pool1d.default": at_1d([4]),
    "adaptive_avg_pool2d.default": at_2d([4, 4]),
    "adaptive_avg_pool3d.default": at_3d([2, 2, 2]),
    "adaptive_max_pool1d.default": at_1d([4]),
    "adaptive_max_pool2d.default": at_2d([4, 4]),
    "adaptive_max_pool3d.default": at_3d([2, 2, 2]),
    "upsample_nearest1d.default": at_1d([16]),
    "upsample_nearest2d.default": at_2d([16, 16]),
    "upsample_nearest3d.default": at_3d([8, 8, 8]),
    "_upsample_nearest_exact2d.default": at_2d([16, 16]),
    "upsample_linear1d.default": at_1d([16], False),
    "upsample_bilinear2d.default": at_2d([16, 16], False),
    "upsample_bilinear2d.vec": at_2d([16, 16], False, None),
    "upsample_bicubic2d.default": at_2d([16, 16], False),
    "upsample_trilinear3d.default": at_3d([8, 8, 8], False),
    "_upsample_bilinear2d_aa.default": at_2d([4, 4], False),
    "_upsample_bicubic2d_aa.default": at_2d([4, 4], False),
    "grid_sampler.default": Case(
        [(3, 2, 8, 8), (3, 5, 5, 2)], lambda a, g: (a, g, 0, 0, False), {2, 3}
    ),
    "reflection_pad1d.default": at_1d([2, 2]),
    "reflection_pad2d.default": at_2d([2, 2, 1, 1]),
    "replication_pad1d.default": at_1d([2, 2]),
    "replication_pad2d.default": at_2d([2, 2, 1, 1]),
    "mean.dim": reduced([1]),
    "mean.default": reduced(),
    "sum.dim_IntList": reduced([1, 2], True),
    "prod.dim_int": reduced(1),
    "amax.default": reduced([2], True),
    "amin.default": reduced([0]),
    "max.dim": reduced(1),
    "max.other": Case([(3, 4), (4,)], lambda a, b: (a, b), {3, 4}),
    "min.dim": reduced(1, True),
    "min.other": Case([(3, 4), (4,)], lambda a, b: (a, b), {3, 4}),
    "argmax.default": reduced(1),
    "argmin.default": reduced(-1, True),
    "std.dim": reduced([1]),
    "var.correction": reduced([1], {"correction": 0, "keepdim": True}),
    "var_mean.correction": reduced([1], {"correction": 0}),
    "std_mean.dim": reduced([1]),
    "median.dim": reduced(1),
    "norm.ScalarOpt_dim": reduced(2, [1], True),
    "linalg_vector_norm.default": reduced(2, [1], True),
    "logsumexp.default": reduced([1]),
    "all.dim": reduced(1),
    "any.dims": reduced([1, 2]),
    "nanmean.default": reduced([1]),
    "nansum.default": reduced([1]),
    "count_nonzero.dim_IntList": reduced([1]),
    # contractions
    "linear.default": Case(
        [(3, 4), (5, 4), (5,)], lambda a, w, b: (a, w, b), {3, 4, 5}, is_exact=False
    ),
    "scaled_dot_product_attention.default": Case(
        [(2, 3, 4, 5), (2, 3, 6, 5), (2, 3, 6, 7), (4, 6)],
        lambda q, k, v, m: (q, k, v, m),
        {2, 3, 4, 5, 6, 7},
        is_exact=False,
    ),
    "einsum.default": Case(
        [(3, 4, 5), (6, 5)], lambda a, w: ("nld, kd -> nkl", [a, w]), {3, 4, 5, 6}, is_exact=False
    ),
    "einsum.default implicit": Case(
        [(3, 4), (4, 5)], lambda a, w: ("ij,jk", [a, w]), set(), is_exact=False
    ),
    "einsum.default broadcast": Case(
        [(3, 4), (1, 4)], lambda a, w: ("ij,ij->ij", [a, w]), set(), is_exact=False
    ),
    "embedding.default": Case([(5, 3), table(0, 4)], lambda w, i: (w, i), {3}),
    "conv1d.default": convolved(1),
    "conv2d.default": convolved(2, *_CONV),
    "conv2d.padding": convolved(2, [1, 1], "same"),
    "conv2d.default grouped": Case(
        [(7, 10, 9, 9), (6, 5, 3, 3), (6,)],
        lambda a, w, b: (a, w, b, *_CONV, 2),
        {7, 2, 3, 5, 9},
        is_exact=False,
    ),
    "conv2d.default depthwise": Case(
        [(7, 5, 9, 9), (5, 1, 3, 3)],
        lambda a, w: (a, w, None, *_CONV, 5),
        {7, 5, 9},
        is_exact=False,
    ),
    "conv2d.default depthwise, fewer places": Case(
        [(7, 5, 9, 9), (5, 1, 3, 3)], lambda a, w: (a, w, None, [2], [1], [1], 5), {7, 5}
    ),
    "conv2d.default multiplied": Case(
        [(7, 5, 9, 9), (10, 1, 3, 3)],
        lambda a, w: (a, w, None, *_CONV, 5),
        {7, 5, 2, 9},
        is_exact=False,
    ),
    "lstm.input": recurrent(4, "h", "c"),
    "gru.input": recurrent(3, "h", directions=2, biases=False),
    "rnn_tanh.input": recurrent(1, "h", batch_first=True),
    "rnn_relu.input": recurrent(1, "h", layers=2, biases=False),
    "conv3d.default": convolved(3),
    "conv_transpose1d.default": convolved(1, transposed=True),
    "conv_transpose2d.input": convolved(2, [2, 2], transposed=True),
    "conv_transpose2d.input grouped": Case(
        [(7, 10, 9, 9), (10, 3, 3, 3), (6,)],
        lambda a, w, b: (a, w, b, [1], [1], [0], 2),
        {7, 2, 3, 5, 9},
        is_exact=False,
    ),
    "conv_transpose3d.input": convolved(3, transposed=True),
    "matmul.default": Case([(2, 3, 4), (4, 5)], lambda a, w: (a, w), {2, 3, 4, 5}, is_exact=False),
    "matmul.default vectors": Case([(4,), (4,)], lambda a, w: (a, w), {4}, is_exact=False),
    "matmul.default broadcast": Case(
        [(2, 1, 3, 4), (6, 4, 5)], lambda a, w: (a, w), {2, 3, 4, 5, 6}, is_exact=False
    ),
    "mm.default": Case([(3, 4), (4, 5)], lambda a, w: (a, w), {3, 4, 5}, is_exact=False),
    "mv.default": Case([(3, 4), (4,)], lambda a, w: (a, w), {3, 4}, is_exact=False),
    "bmm.default": Case([(2, 3, 4), (2, 4, 5)], lambda a, w: (a, w), {2, 3, 4, 5}, is_exact=False),
    "addmm.default": Case(
        [(5,), (3, 4), (4, 5)], lambda b, a, w: (b, a, w), {3, 4, 5}, is_exact=False
    ),
    "baddbmm.default": Case(
        [(2, 3, 5), (2, 3, 4), (2, 4, 5)], lambda b, a, w: (b, a, w), {2, 3, 4, 5}, is_exact=False
    ),
    # layout
    "one_hot.default": Case([table(0, 2, 1)], lambda a: (a, 4), set()),
    "unfold.default": Case([(3, 9, 4)], lambda a: (a, 1, 3, 2), {3, 4}),
    "view.default": Case([(3, 4)], lambda a: (a, [3, 2, 2]), {3, 2}),
    "view.dtype": Case([(3, 4)], lambda a: (a, torch.int32), set()),
    "reshape.default": Case([(3, 10)], lambda a: (a, [3, 2, 5]), {3, 2, 5}),
    "reshape.default inferred": Case([(3, 10)], lambda a: (a, [3, 2, -1]), {3, 2, 5}),
    "reshape.default across": Case([(4, 9)], lambda a: (a, [6, 6]), set()),
    "_unsafe_view.default": Case([(3, 4)], lambda a: (a, [12]), {3, 4}),
    "flatten.using_ints": Case([(3, 4, 5)], lambda a: (a, 1), {3, 4, 5}),
    "unflatten.int": Case([(3, 10)], lambda a: (a, 1, [2, 5]), {3, 2, 5}),
    "squeeze.dim": Case([(3, 1, 4)], lambda a: (a, 1), {3, 4}),
    "unsqueeze.default": Case([(3, 4)], lambda a: (a, 1), {3, 4}),
    "atleast_3d.default": Case([(3, 4)], lambda a: (a,), {3, 4}),
    "view_as.default": Case([(12,), (3, 4)], lambda a, b: (a, b), {3, 4}),
    "reshape_as.default": Case([(12,), (3, 4)], lambda a, b: (a, b), {3, 4}),
    "permute.default": Case([(3, 4, 5)], lambda a: (a, [2, 0, 1]), {3, 4, 5}),
    "transpose.int": Case([(3, 4, 5)], lambda a: (a, 1, -1), {3, 4, 5}),
    "swapaxes.default": Case([(3, 4, 5)], lambda a: (a, 0, 1), {3, 4, 5}),
    "swapdims.default": Case([(3, 4, 5)], lambda a: (a, 0, 1), {3, 4, 5}),
    "mT.default": Case([(3, 4, 5)], lambda a: (a,), {3, 4, 5}),
    "t.default": Case([(3, 4)], lambda a: (a,), {3, 4}),
    "numpy_T.default": Case([(3, 4)], lambda a: (a,), {3, 4}),
    "movedim.int": Case([(3, 4, 5)], lambda a: (a, 0, -1), {3, 4, 5}),
    "moveaxis.intlist": Case([(3, 4, 5)], lambda a: (a, [0, 1], [2, 0]), {3, 4, 5}),
    "expand.default": Case([(1, 4)], lambda a: (a, [3, -1]), {4}),
    "expand.default scaled": Case([(1, 4)], lambda a: (a, [3, 4]), {3, 4}, plus=(3, 4)),
    "expand_as.default": Case([(1, 4), (3, 4)], lambda a, b: (a, b), {3, 4}),
    "repeat.default": Case([(3, 4)], lambda a: (a, [2, 1, 5]), {3, 4}),
    "repeat.default scaled": Case([(4,)], lambda a: (a, [3, 1]), {3, 4}, plus=(3, 4)),
    "tile.default": Case([(3, 4)], lambda a: (a, [2]), {3, 4}),
    "repeat_interleave.self_int": Case([(3, 4)], lambda a: (a, 2, 1), {3, 4}),
    "repeat_interleave.self_int flat": Case([(3, 4)], lambda a: (a, 2), set()),
    "cat.default": Case([(3, 4), (3, 5)], lambda a, b: ([a, b], 1), {3, 4, 5}),
    "cat.default with nothing": Case(
        [(3, 4), (3, 5), torch.zeros(0)], lambda a, b, e: ([e, a, b], 1), {3, 4, 5}
    ),
    "concat.default": Case([(4, 3), (5, 3)], lambda a, b: ([a, b],), {3, 4, 5}),
    "concatenate.default": Case([(4, 3), (4, 3)], lambda a, b: ([a, b, a], -1), {3, 4}),
    "stack.default": Case([(3, 4), (3, 4)], lambda a, b: ([a, b], 1), {3, 4}),
    "split.Tensor": Case([(3, 8)], lambda a: (a, 4, 1), {3, 4}),
    "split.Tensor uneven": Case([(3, 8)], lambda a: (a, 5, 1), {3}),
    "split.sizes": Case([(3, 9)], lambda a: (a, [2, 7], 1), {3, 2, 7}),
    "split_with_sizes.default": Case([(3, 9)], lambda a: (a, [2, 7], -1), {3, 2, 7}),
    "chunk.default": Case([(3, 8)], lambda a: (a, 2, 1), {3, 4}),
    "chunk.default uneven": Case([(3, 7)], lambda a: (a, 2, 1), {3}),
    "tensor_split.sections": Case([(3, 8)], lambda a: (a, 2, 1), {3, 4}),
    "tensor_split.indices": Case([(3, 8)], lambda a: (a, [4], 1), set()),
    "unbind.int": Case([(3, 4)], lambda a: (a, 0), {4}),
    "select.int": Case([(3, 4)], lambda a: (a, 0, -1), {4}),
    "select_scatter.default": Case([(3, 4), (4,)], lambda a, b: (a, b, 0, -1), {4}),
    "slice_scatter.default": Case([(5, 9), (5, 3)], lambda a, b: (a, b, 1, 2, 5), {5, 2, 3, 4}),
    "slice_scatter.default whole": Case([(3, 9), (3, 9)], lambda a, b: (a, b, 1), {3, 9}),
    "slice_scatter.default stepped": Case([(3, 9), (3, 5)], lambda a, b: (a, b, 1, 0, 9, 2), {3}),
    "slice.Tensor": Case([(3, 9)], lambda a: (a, 1, 2, 5), {3, 2, 4}),
    "slice.Tensor open": Case([(3, 9)], lambda a: (a, 1, 2), {3, 2, 7}),
    "slice.Tensor from the end": Case([(3, 9)], lambda a: (a, 1, -4), {3, 5, 4}),
    "slice.Tensor to the end": Case([(3, 9)], lambda a: (a, 1, None, -4), {3, 5, 4}),
    "slice.Tensor whole": Case([(3, 9)], lambda a: (a, 1, 0, 2**63 - 1), {3, 9}),
    "slice.Tensor stepped": Case([(3, 9)], lambda a: (a, 1, 0, 9, 2), {3}),
    "narrow.default": Case([(3, 9)], lambda a: (a, 1, 2, 4), {3, 2, 4}),
    "narrow.default from the end": Case([(3, 9)], lambda a: (a, 1, -5, 5), {3, 4, 5}),
    "index_select.default": Case([(3, 4), table(2, 0)], lambda a, i: (a, 1, i), {3}),
    "index.Tensor": Case(
        [(3, 4, 5), table(2, 0), table(1, 1)], lambda a, i, j: (a, [None, i, j]), {3}
    ),
    "index.Tensor apart": Case(
        [(3, 4, 5), table(2, 0), table(1, 1)], lambda a, i, j: (a, [i, None, j]), {4}
    ),
    "pixel_shuffle.default": Case([(3, 20, 2, 2)], lambda a: (a, 2), {3, 5}),
    "pixel_shuffle.default unbatched": Case([(20, 2, 2)], lambda a: (a, 2), {5}),
    "pixel_unshuffle.default": Case([(3, 5, 4, 4)], lambda a: (a, 2), {3, 5}),
    "channel_shuffle.default": Case([(5, 6, 2, 2)], lambda a: (a, 2), {5, 2, 3}),
    "im2col.default": Case([(3, 5, 4, 4)], lambda a: (a, [2, 2], [1, 1], [0, 0], [2, 2]), {3, 5}),
    "im2col.default unbatched": Case(
        [(5, 4, 4)], lambda a: (a, [2, 2], [1, 1], [0, 0], [2, 2]), {5}
    ),
    **{
        f"{name}.{overload}": Case([], lambda value=value: ([3, 4], *value), {3, 4}, plus=(3, 4))
        for name, overload, value in [
            ("zeros", "default", ()),
            ("ones", "default", ()),
            ("full", "default", (2.0,)),
        ]
    },
    "empty.memory_format": Case([], lambda: ([3, 4],), {3, 4}, is_exact=False, plus=(3, 4)),
    "new_zeros.default": Case([(5,)], lambda a: (a, [3, 4]), {3, 4, 5}, plus=(3, 4)),
    "new_ones.default": Case([(5,)], lambda a: (a, [3, 4]), {3, 4, 5}, plus=(3, 4)),
    "new_full.default": Case([(5,)], lambda a: (a, [3, 4], 2.0), {3, 4, 5}, plus=(3, 4)),
    # no rule of their own, but pointwise by their tag
    "add.Tensor": Case([(3, 4), (4,)], lambda a, b: (a, b), {3, 4}),
    "gelu.default": same(),
    "clamp.default": same(-0.1, 0.1),
}
