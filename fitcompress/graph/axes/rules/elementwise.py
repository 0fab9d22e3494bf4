"""Axis rules of operations that do not reorder elements: pointwise calls, norms, pooling,
reductions, padding."""

from __future__ import annotations

from collections.abc import Sequence

from fitcompress.graph.axes.algebra import Axis
from fitcompress.graph.axes.builder import Axes, Value
from fitcompress.graph.axes.rules.call import PLACE, Call, Rule
from fitcompress.graph.program import WEIGHT_ARGUMENTS

__all__ = ["ELEMENTWISE", "broadcast", "is_fixed", "normal_dims", "pointwise"]


def normal_dims(dims: int | Sequence[int] | None, rank: int) -> list[int]:
    """Dimensions as a list of non-negative numbers; all dimensions for None or an empty list."""
    if dims is None or dims == []:
        return list(range(rank))
    return [dim % rank for dim in ([dims] if isinstance(dims, int) else dims)]


def broadcast(call: Call, operands: Sequence[Axes]) -> Axes:
    """The axes of operands broadcast together, unifying axes that do not have size 1."""
    rank = max(map(len, operands))
    padded = [[()] * (rank - len(axes)) + list(axes) for axes in operands]
    result: Axes = []
    for aligned in zip(*padded, strict=True):
        full = [axis for axis in aligned if call.algebra.size(axis) != 1]
        call.algebra.unify_all(full or [()])
        result.append(full[0] if full else ())
    return result


def pointwise(call: Call) -> Value:
    """Each element of the result depends on the operands' elements at the same index."""
    operands = [call.axes(name) for name in call.tensor_names()]
    if not operands:
        return call.fresh(call.shape)
    if call.name in ("mul", "div"):
        summed = call.trace.contracted_by(call.node.all_input_nodes)
        call.bind_constant("other", [*operands[0], *summed])
    return broadcast(call, operands)


def _same(call: Call) -> Value:
    return _each(call, call.axes(call.tensor_names()[0]))


def _each(call: Call, axes: Axes) -> Value:
    """The same axes for every result of the call."""
    several = bool(call.shape) and isinstance(call.shape[0], tuple)
    return [axes] * len(call.shape) if several else axes


def _ordered(call: Call) -> Value:
    """The axes of the input; dimensions along which the order matters are frozen."""
    axes = call.axes(call.tensor_names()[0])
    for dim in normal_dims(call.get("dim", "dims"), len(axes)):
        call.freeze([axes[dim]], f"{call.name} depends on the order along it")
    return _each(call, axes)


def _prelu(call: Call) -> Value:
    axes = call.axes("self")
    channels = axes[1] if len(axes) > 1 else axes[0]
    (slope,) = call.axes("weight")
    if slope:
        call.algebra.unify(channels, slope)
    return axes


def _batch_norm(call: Call) -> Value:
    axes = call.axes("input")
    for name in WEIGHT_ARGUMENTS:
        if call.is_tensor(name):
            call.algebra.unify(axes[1], call.axes(name)[0])
    return axes


def _layer_norm(call: Call) -> Value:
    axes = call.axes("input")
    trailing = axes[len(axes) - len(call["normalized_shape"]) :]
    for index, axis in enumerate(trailing):
        call.bind(axis, "normalized_shape", index)
    for name in ("weight", "bias"):
        if call.is_tensor(name):
            for axis, own in zip(trailing, call.axes(name), strict=True):
                call.algebra.unify(axis, own)
    if call.name == "_fused_rms_norm":
        return [axes, [*axes[: -len(trailing)], *[()] * len(trailing)]]
    return axes


def _group_norm(call: Call) -> Value:
    axes, groups = call.axes("input"), call["num_groups"]
    channels = axes[1]
    group_axis, _ = call.algebra.regroup(
        [channels], [groups, call.algebra.size(channels) // groups]
    )
    call.bind(group_axis, "num_groups")
    for name in ("weight", "bias"):
        if call.is_tensor(name):
            call.algebra.unify(channels, call.axes(name)[0])
    return axes


def _resample(call: Call) -> Value:
    """Resizes the trailing, spatial dimensions, which are frozen; the leading ones are kept."""
    axes, *others = (call.axes(name) for name in call.tensor_names())
    for grid in others:
        call.algebra.unify(axes[0], grid[0])
        call.freeze(grid[1:], PLACE)
    extents = next((int(letter) for letter in call.name if letter.isdigit()), 2)
    channels, places = axes[:-extents], axes[-extents:]
    call.freeze(places, PLACE)
    shape = call.shape[0] if isinstance(call.shape[0], tuple) else call.shape
    return _each(call, [*channels, *call.fresh(shape[len(channels) :], PLACE)])


def _pad(call: Call) -> Value:
    """Constant padding concatenates new indices before and after the old ones; the added parts are
    free too. Negative padding, which removes indices, freezes."""
    axes, pads = call.axes("self"), call["pad"]
    result = list(axes)
    for pair in range(len(pads) // 2):
        dim = len(axes) - 1 - pair
        before, after = pads[2 * pair], pads[2 * pair + 1]
        if before < 0 or after < 0:
            reason = PLACE if is_fixed(call, axes[dim]) else "cut by a negative padding"
            call.freeze([axes[dim]], reason)
            result[dim] = call.algebra.new(call.shape[dim], frozen=reason)
            continue
        parts = [_part(call, before, axes[dim]), axes[dim], _part(call, after, axes[dim])]
        result[dim] = call.algebra.join(part for part in parts if part is not None)
        for index, part in ((2 * pair, parts[0]), (2 * pair + 1, parts[2])):
            if part:
                call.bind(part, "pad", index)
    return result


def _part(call: Call, size: int, beside: Axis) -> Axis | None:
    """The indices that padding adds to an axis; frozen if the axis is."""
    reason = PLACE if is_fixed(call, beside) else ""
    return call.algebra.new(size, frozen=reason) if size else None


def is_fixed(call: Call, axis: Axis) -> bool:
    """Whether the size of the axis must not change: it has atoms, and all are frozen."""
    reasons = [call.algebra.frozen_reason(atom) for atom in call.algebra.atoms(axis)]
    return bool(reasons) and all(reasons)


def _reduce(call: Call) -> Value:
    """The reduced dimensions are dropped, or kept with size 1."""
    if call.is_tensor("other"):
        return pointwise(call)
    axes = call.axes(call.tensor_names()[0])
    dims = normal_dims(call.get("dim", "dims"), len(axes))
    keepdim = bool(call.get("keepdim"))
    kept = [
        () if dim in dims else axis for dim, axis in enumerate(axes) if keepdim or dim not in dims
    ]
    return _each(call, kept)


def _glu(call: Call) -> Value:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    half = call.algebra.size(axes[dim]) // 2
    first, second = call.algebra.split(axes[dim], [half, half])
    call.algebra.unify(first, second)
    return [*axes[:dim], first, *axes[dim + 1 :]]


def _all(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


ELEMENTWISE: dict[str, Rule] = {
    "prelu": _prelu,
    "glu": _glu,
    "group_norm": _group_norm,
    **_all("constant_pad_nd pad", _pad),
    **_all("batch_norm instance_norm", _batch_norm),
    **_all("layer_norm rms_norm _fused_rms_norm", _layer_norm),
    **_all("_prelu_kernel masked_fill where lerp hardswish", pointwise),
    **_all(
        """
        alias clone contiguous detach lift_fresh_copy to _to_copy type_as hardtanh rrelu
        dropout feature_dropout alpha_dropout native_dropout
        softmax _softmax log_softmax _log_softmax
        empty_like ones_like zeros_like full_like rand_like randn_like
        """,
        _same,
    ),
    **_all("cumsum cumprod flip roll sort argsort", _ordered),
    **_all(
        """
        avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
        adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d
        upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d
        _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
        reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
        """,
        _resample,
    ),
    **_all(
        """
        mean sum prod amax amin max min argmax argmin std var var_mean std_mean median
        norm linalg_vector_norm logsumexp all any nanmean nansum count_nonzero
        """,
        _reduce,
    ),
}
