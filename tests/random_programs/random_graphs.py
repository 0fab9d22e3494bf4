"""Random programs of ATen calls: lists of steps with a seed each, so that hypothesis can shrink a
program by leaving steps out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from random import Random

import torch
from random_programs import random_blocks as blocks
from random_programs import random_layouts as layouts
from random_programs import random_pieces as pieces
from random_programs import random_steps as steps
from random_programs.random_drawing import Drawing, Scale, Unfit
from random_programs.random_steps import Step, along, reduced, resampled, unary
from torch import Tensor

from fitcompress.graph.program import Program

__all__ = ["COMMON", "RESIDUALS", "STEPS", "draw_chain", "draw_program", "random_inputs"]


def draw_program(plan: Sequence[tuple[str, int]]) -> tuple[Program, dict[str, Scale]]:
    """The program of named steps, each with its own seed, and its literals derived from sizes.
    Steps that find no value to use are skipped."""
    drawing = Drawing()
    for name, seed in plan:
        _try(drawing, STEPS[name], seed)
    return drawing.finish(), drawing.scales


def draw_chain(rank: int, plan: Sequence[tuple[str, int]]) -> Program:
    """A chain of residual blocks, on tokens or feature maps, and a linear layer at the end."""
    drawing = Drawing()
    drawing.fresh(rank)
    drawing.is_closed = True
    for name, seed in plan:
        _try(drawing, RESIDUALS[name], seed)
        drawing.pool[:-1] = []
    _try(drawing, steps.linear, rank)
    return drawing.finish()


def _try(drawing: Drawing, step: Step, seed: int) -> None:
    drawing.random = Random(seed)
    drawing.block += 1
    with suppress(Unfit):
        step(drawing)


def random_inputs(program: Program, batch_size: int) -> list[Tensor]:
    """Inputs of the program's shapes; integers are 0 or 1."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(0, 2, (batch_size, *info.shape), generator=generator)
        if not info.dtype.is_floating_point
        else torch.randn((batch_size, *info.shape), generator=generator).to(info.dtype)
        for info in program.inputs
    ]


def _as_list(dim: int) -> list[int]:
    return [dim]


_LIKE = torch.float64

_UNARY = (
    "relu", "gelu", "sigmoid", "tanh", "silu", "hardswish", "hardtanh", "abs", "alias", "clone",
    "contiguous", "detach", "lift_fresh_copy", "rrelu", "ones_like", "zeros_like",
)  # fmt: skip

POINTWISE: dict[str, Step] = {
    **{f"{name}.default": unary(f"{name}.default") for name in _UNARY},
    "to.dtype": unary("to.dtype", _LIKE),
    "_to_copy.default": unary("_to_copy.default", dtype=_LIKE),
    "full_like.default": unary("full_like.default", 2.0),
    **{
        f"{name}.default": unary(f"{name}.default", 0.5, False)
        for name in ("dropout", "feature_dropout", "alpha_dropout")
    },
    "native_dropout.default": steps.first_of("native_dropout.default", 0.5, False),
    **{f"{name}.Tensor": steps.binary(f"{name}.Tensor") for name in ("add", "mul", "sub")},
    **{f"{name}.other": steps.binary(f"{name}.other") for name in ("max", "min")},
    "type_as.default": steps.binary("type_as.default"),
    "lerp.Scalar": steps.binary("lerp.Scalar", 0.3),
    "a scalar": steps.scalar,
    "a table": steps.table,
    "masked_fill.Scalar": steps.masked_fill,
    "where.self": steps.where,
    "prelu.default": steps.prelu,
    "_prelu_kernel.default": steps.prelu_kernel,
    "glu.default": steps.glu,
    "softmax.int": along("softmax.int"),
    "log_softmax.int": along("log_softmax.int"),
    "_softmax.default": along("_softmax.default", False),
    "_log_softmax.default": along("_log_softmax.default", False),
    "cumsum.default": along("cumsum.default"),
    "cumprod.default": along("cumprod.default"),
    "sort.default": along("sort.default"),
    "argsort.default": along("argsort.default"),
    "flip.default": along("flip.default", form=_as_list),
    "roll.default": steps.roll,
}

_REDUCE_SEVERAL = (
    "sum.dim_IntList", "mean.dim", "amax.default", "amin.default", "logsumexp.default",
    "nanmean.default", "nansum.default", "any.dims", "all.dims",
)  # fmt: skip
_REDUCE_ONE = ("prod.dim_int", "max.dim", "min.dim", "argmax.default", "argmin.default")

REDUCTIONS: dict[str, Step] = {
    **{key: reduced(key) for key in _REDUCE_SEVERAL},
    **{key: reduced(key, several=False) for key in _REDUCE_ONE},
    **{
        f"{name}.correction": reduced(f"{name}.correction", correction=0)
        for name in ("var", "std", "var_mean", "std_mean")
    },
    "median.dim": steps.median,
    "norm.ScalarOpt_dim": steps.vector_norm,
    "linalg_vector_norm.default": reduced("linalg_vector_norm.default", 2),
    "count_nonzero.dim_IntList": reduced("count_nonzero.dim_IntList", keeps=False),
}

NORMS: dict[str, Step] = {
    "batch_norm.default": steps.batch_norm,
    "instance_norm.default": steps.instance_norm,
    "group_norm.default": steps.group_norm,
    "layer_norm.default": steps.trailing_norm("layer_norm.default", True),
    "rms_norm.default": steps.trailing_norm("rms_norm.default", False),
    "_fused_rms_norm.default": steps.trailing_norm("_fused_rms_norm.default", False, 1e-5),
}


def _resampling(extents: int) -> dict[str, Step]:
    halved = {
        f"{name}{extents}d{more}.default": resampled(f"{name}{extents}d{more}.default", extents, 2)
        for name, more in (("avg_pool", ""), ("max_pool", ""), ("max_pool", "_with_indices"))
    }
    sized = {
        f"{name}{extents}d.default": resampled(f"{name}{extents}d.default", extents, 3)
        for name in ("adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
    }
    return halved | sized


MAPS: dict[str, Step] = {
    **{key: step for extents in (1, 2, 3) for key, step in _resampling(extents).items()},
    **{
        f"{name}.default": resampled(f"{name}.default", extents, 6, *rest)
        for name, extents, *rest in (
            ("_upsample_nearest_exact2d", 2),
            ("upsample_linear1d", 1, False),
            ("upsample_bilinear2d", 2, False),
            ("upsample_bicubic2d", 2, True),
            ("upsample_trilinear3d", 3, False),
            ("_upsample_bilinear2d_aa", 2, False),
            ("_upsample_bicubic2d_aa", 2, False),
        )
    },
    **{
        f"{kind}_pad{extents}d.default": steps.padded(f"{kind}_pad{extents}d.default", extents)
        for kind in ("reflection", "replication")
        for extents in (1, 2)
    },
    "constant_pad_nd.default": steps.constant_pad("constant_pad_nd.default", 0.5),
    "pad.default": steps.constant_pad("pad.default", "constant", None),
    "grid_sampler.default": steps.grid_sampler,
    "pixel_shuffle.default": layouts.pixel_shuffle,
    "pixel_unshuffle.default": layouts.pixel_unshuffle,
    "channel_shuffle.default": layouts.channel_shuffle,
    "im2col.default": layouts.im2col,
    "unfold.default": layouts.unfold,
}

CONTRACTIONS: dict[str, Step] = {
    "linear.default": steps.linear,
    "a computed weight": steps.computed_weight,
    **{
        f"conv{extents}d.{form}": steps.convolved(f"conv{extents}d.{form}", extents)
        for extents in (1, 2, 3)
        for form in ("default", "padding")
    },
    **{
        key: steps.convolved(key, extents)
        for key, extents in (
            ("conv_transpose1d.default", 1),
            ("conv_transpose2d.input", 2),
            ("conv_transpose3d.input", 3),
        )
    },
    "matmul.default": steps.matmul,
    **{f"{name}.default": steps.plain_product(f"{name}.default") for name in ("mm", "mv", "addmm")},
    **{f"{name}.default": steps.batched_product(f"{name}.default") for name in ("bmm", "baddbmm")},
    "einsum.default": steps.einsum,
    "embedding.default": steps.embedding,
    "one_hot.default": steps.one_hot,
    **{
        f"{name}.input": blocks.recurrent(f"{name}.input", gates)
        for name, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1))
    },
}

LAYOUT: dict[str, Step] = {
    **{
        f"{name}.default": layouts.reshape(f"{name}.default")
        for name in ("view", "reshape", "_unsafe_view")
    },
    **{
        f"{name}.default": layouts.reshape_like(f"{name}.default")
        for name in ("view_as", "reshape_as")
    },
    "flatten.using_ints": layouts.flatten,
    "unflatten.int": layouts.unflatten,
    "squeeze.dim": layouts.squeeze,
    "unsqueeze.default": layouts.unsqueeze,
    "atleast_3d.default": layouts.atleast_3d,
    "a shuffle": layouts.shuffle,
    "windows": layouts.windows,
    "permute.default": layouts.permute,
    **{
        key: layouts.swapped(key)
        for key in ("transpose.int", "swapaxes.default", "swapdims.default", "movedim.int")
    },
    "moveaxis.intlist": layouts.moveaxis,
    "mT.default": unary("mT.default"),
    "t.default": layouts.matrix("t.default"),
    "numpy_T.default": layouts.matrix("numpy_T.default"),
    "expand.default": layouts.expand,
    "expand_as.default": layouts.expand_as,
    "repeat.default": layouts.repeated("repeat.default"),
    "tile.default": layouts.repeated("tile.default"),
    "repeat_interleave.self_int": layouts.repeat_interleave,
    **{
        f"{name}.default": pieces.cat(f"{name}.default")
        for name in ("cat", "concat", "concatenate")
    },
    "stack.default": pieces.stack,
    "unbind.int": pieces.unbind,
    "split.Tensor": pieces.split_evenly("split.Tensor"),
    "split.sizes": pieces.split_by_sizes("split.sizes"),
    "split_with_sizes.default": pieces.split_by_sizes("split_with_sizes.default"),
    "chunk.default": pieces.chunk("chunk.default"),
    "tensor_split.sections": pieces.chunk("tensor_split.sections"),
    "tensor_split.indices": pieces.tensor_split_at,
    "select.int": pieces.select,
    "select_scatter.default": pieces.select_scatter,
    "slice.Tensor": pieces.slice_,
    "slice_scatter.default": pieces.slice_scatter,
    "narrow.default": pieces.narrow,
    "halves": pieces.halves,
    "index_select.default": pieces.index_select,
    "index.Tensor": pieces.index,
    **{
        f"{name}.{form}": layouts.made(f"{name}.{form}", *rest)
        for name, form, *rest in (
            ("zeros", "default"),
            ("ones", "default"),
            ("full", "default", 2.0),
            ("empty", "memory_format"),
            ("new_zeros", "default"),
            ("new_ones", "default"),
            ("new_full", "default", 2.0),
        )
    },
    **{
        f"{name}_like.default": layouts.noise(f"{name}_like.default")
        for name in ("empty", "rand", "randn")
    },
}

WITHOUT_RULE: dict[str, Step] = {
    "linalg_matrix_exp.default": layouts.square("linalg_matrix_exp.default"),
    "tril.default": layouts.square("tril.default"),
    "diff.default": layouts.diff,
    "gather.default": layouts.gather,
    "logcumsumexp.default": along("logcumsumexp.default"),
}

RESIDUALS: dict[str, Step] = {
    "scaled_dot_product_attention.default": blocks.attention,
    "a residual": blocks.residual,
    "a residual map": blocks.residual_map,
}

STEPS: dict[str, Step] = {
    **RESIDUALS,
    **POINTWISE,
    **REDUCTIONS,
    **NORMS,
    **MAPS,
    **CONTRACTIONS,
    **LAYOUT,
    **WITHOUT_RULE,
}

COMMON = (
    "linear.default", "conv1d.default", "conv2d.default", "conv_transpose2d.input",
    "scaled_dot_product_attention.default", "matmul.default", "einsum.default",
    "batch_norm.default", "layer_norm.default", "group_norm.default", "relu.default",
    "add.Tensor", "mul.Tensor", "glu.default", "a shuffle", "windows", "halves",
    "reshape.default", "flatten.using_ints", "unflatten.int", "permute.default", "transpose.int",
    "cat.default", "split.sizes", "chunk.default", "slice.Tensor", "expand.default",
    "stack.default", "unbind.int", "mean.dim", "repeat.default", "pixel_shuffle.default",
)  # fmt: skip
"""What networks are made of: half of all steps."""
