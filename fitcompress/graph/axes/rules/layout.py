"""Axis rules of operations that move, regroup, concatenate and split dimensions."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from fitcompress.graph.axes.algebra import Axis
from fitcompress.graph.axes.builder import Axes, Value
from fitcompress.graph.axes.rules.call import KERNEL, PLACE, Call, Rule
from fitcompress.graph.axes.rules.elementwise import broadcast, normal_dims

__all__ = ["LAYOUT"]


def _reshape(call: Call) -> Value:
    argument = "size" if "size" in call.arguments else "shape"
    if argument not in call.arguments:
        return None
    result = call.algebra.regroup(call.axes("self"), call.shape)
    for index, axis in enumerate(result):
        call.bind(axis, argument, index, inferable=True)
    return result


def _regroup(call: Call) -> Value:
    """A reshape without sizes among its literals."""
    return call.algebra.regroup(call.axes("self"), call.shape)


def _reshape_as(call: Call) -> Value:
    result = call.algebra.regroup(call.axes("self"), call.shape)
    broadcast(call, [result, call.axes("other")])
    return result


def _unflatten(call: Call) -> Value:
    result = call.algebra.regroup(call.axes("self"), call.shape)
    dim = call["dim"] % len(call.axes("self"))
    for index in range(len(call["sizes"])):
        call.bind(result[dim + index], "sizes", index, inferable=True)
    return result


def _pixel_shuffle(call: Call) -> Value:
    """(N, C r r, H, W) -> (N, C, H r, W r)."""
    *leading, channels, height, width = call.axes("self")
    factor = call["upscale_factor"]
    inner = call.algebra.size(channels) // factor**2
    kept, *extents = call.algebra.regroup([channels], [inner, factor, factor])
    call.freeze([*extents, height, width], PLACE)
    return [*leading, kept, *call.fresh(call.shape[-2:], PLACE)]


def _pixel_unshuffle(call: Call) -> Value:
    *leading, channels, height, width = call.axes("self")
    call.freeze([height, width], PLACE)
    extents = call.fresh([call["downscale_factor"]] * 2, PLACE)
    merged = (*channels, *extents[0], *extents[1])
    return [*leading, merged, *call.fresh(call.shape[-2:], PLACE)]


def _channel_shuffle(call: Call) -> Value:
    axes = call.axes("self")
    groups = call["groups"]
    group, inner = call.algebra.regroup([axes[1]], [groups, call.algebra.size(axes[1]) // groups])
    call.bind(group, "groups")
    return [axes[0], (*inner, *group), *axes[2:]]


def _windows(call: Call) -> Value:
    """`unfold`: (..., L, ...) -> (..., number of windows, ..., window)."""
    axes = call.axes("self")
    dim = call["dimension"] % len(axes)
    call.freeze([axes[dim]], PLACE)
    (count,), (window,) = call.fresh([call.shape[dim]], PLACE), call.fresh([call["size"]], KERNEL)
    return [*axes[:dim], count, *axes[dim + 1 :], window]


def _im2col(call: Call) -> Value:
    """`im2col`: (N, C, H, W) -> (N, C k k, L)."""
    *leading, channels, height, width = call.axes("self")
    call.freeze([height, width], PLACE)
    kernel = [call.algebra.new(size, frozen=KERNEL) for size in call["kernel_size"]]
    merged = (*channels, *kernel[0], *kernel[1])
    return [*leading, merged, *call.fresh(call.shape[-1:], PLACE)]


def _permute(call: Call) -> Value:
    axes = call.axes("self")
    return [axes[dim] for dim in call["dims"]]


def _transpose(call: Call) -> Value:
    axes = call.axes("self")
    one, other = call.get("dim0", "axis0"), call.get("dim1", "axis1")
    if one is None:
        one, other = -2, -1
    if len(axes) > 1:
        axes[one], axes[other] = axes[other], axes[one]
    return axes


def _reverse(call: Call) -> Value:
    return call.axes("self")[::-1]


def _move(call: Call) -> Value:
    axes = call.axes("self")
    sources = normal_dims(call["source"], len(axes))
    targets = normal_dims(call["destination"], len(axes))
    moved = dict(zip(targets, (axes[source] for source in sources), strict=True))
    rest = iter(axis for dim, axis in enumerate(axes) if dim not in sources)
    return [moved[dim] if dim in moved else next(rest) for dim in range(len(axes))]


def _expand(call: Call) -> Value:
    axes, shape = call.axes("self"), call.shape
    axes = [()] * (len(shape) - len(axes)) + axes
    result = []
    for index, (axis, size) in enumerate(zip(axes, shape, strict=True)):
        grown = axis if call.algebra.size(axis) == size else call.algebra.new(size)
        call.bind(grown, "size", index)
        result.append(grown)
    return result


def _expand_as(call: Call) -> Value:
    return broadcast(call, [call.axes("self"), call.axes("other")])


def _repeat(call: Call) -> Value:
    argument = "repeats" if "repeats" in call.arguments else "dims"
    counts = call.fresh(call[argument])
    for index, count in enumerate(counts):
        call.bind(count, argument, index)
    rank = len(call.shape)
    axes = [()] * (rank - len(call.axes("self"))) + call.axes("self")
    counts = [()] * (rank - len(counts)) + counts
    return [(*count, *axis) for count, axis in zip(counts, axes, strict=True)]


def _repeat_interleave(call: Call) -> Value:
    axes = call.axes("self")
    if call["dim"] is None or not isinstance(call.get("repeats"), int):
        return None
    dim = call["dim"] % len(axes)
    count = call.algebra.new(call["repeats"], frozen="a number of repeats")
    return [*axes[:dim], (*axes[dim], *count), *axes[dim + 1 :]]


def _concatenate(call: Call) -> Value:
    """A concatenation; axes next to spatial ones (such as learned tokens) count as spatial."""
    size = call.algebra.size
    operands = [axes for axes in call.list_axes("tensors") if list(map(size, axes)) != [0]]
    dim = call["dim"] % len(operands[0])
    result: Axes = []
    for index, aligned in enumerate(zip(*operands, strict=True)):
        if index == dim:
            if any(_are_places(call, axis) for axis in aligned):
                call.freeze(aligned, PLACE)
            result.append(call.algebra.join(aligned))
        else:
            call.algebra.unify_all(aligned)
            result.append(aligned[0])
    return result


def _are_places(call: Call, axis: Axis) -> bool:
    return {call.algebra.frozen_reason(atom) for atom in call.algebra.atoms(axis)} == {PLACE}


def _stack(call: Call) -> Value:
    operands = call.list_axes("tensors")
    dim = call["dim"] % (len(operands[0]) + 1)
    for aligned in zip(*operands, strict=True):
        call.algebra.unify_all(aligned)
    return [*operands[0][:dim], call.algebra.join([()] * len(operands)), *operands[0][dim:]]


def _pieces(call: Call, dim: int, shapes: Sequence[Sequence[int]]) -> tuple[list[Axes], list[Axis]]:
    """The axes of consecutive pieces along `dim`, and their axes of that dimension alone."""
    axes = call.axes("self")
    parts = call.algebra.split(axes[dim], [shape[dim] for shape in shapes])
    return [[*axes[:dim], part, *axes[dim + 1 :]] for part in parts], parts


def _split(call: Call) -> Value:
    """A split into pieces of given sizes: one literal per piece, or a single one for all."""
    dim = call["dim"] % len(call.axes("self"))
    result, parts = _pieces(call, dim, call.shape)
    argument = "split_sizes" if "split_sizes" in call.arguments else "split_size"
    if isinstance(call[argument], list):
        for index, part in enumerate(parts):
            call.bind(part, argument, index)
    else:
        _require_even(call, parts)
        call.bind(parts[0], argument)
    return result


def _chunk(call: Call) -> Value:
    """A split into a number of pieces, which does not change: the pieces must stay equal."""
    if call.name == "tensor_split" and "sections" not in call.arguments:
        return None
    dim = call["dim"] % len(call.axes("self"))
    result, parts = _pieces(call, dim, call.shape)
    _require_even(call, parts)
    return result


def _require_even(call: Call, parts: Sequence[Axis]) -> None:
    if len({call.algebra.size(part) for part in parts}) == 1:
        call.algebra.unify_all(parts)
    else:
        call.freeze(parts, f"{call.name} makes unequal pieces")


def _unbind(call: Call) -> Value:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.freeze([axes[dim]], "split into single indices")
    return [[*axes[:dim], *axes[dim + 1 :]]] * len(call.shape)


def _select(call: Call) -> Axes:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.freeze([axes[dim]], "a single index is selected")
    return [*axes[:dim], *axes[dim + 1 :]]


def _slice(call: Call) -> Value:
    """A contiguous piece, whose bounds are sums of the pieces before them; a step freezes."""
    return _piece(call, call.axes("self"), call.shape[call["dim"]])


def _slice_scatter(call: Call) -> Value:
    """The axes of the whole, with those of the slice unified with the values written to it."""
    axes, source = call.axes("self"), call.axes("src")
    piece = _piece(call, axes, call.algebra.size(source[call["dim"]]))
    for one, other in zip(piece, source, strict=True):
        call.algebra.unify(one, other)
    return axes


def _select_scatter(call: Call) -> Value:
    """The axes of the whole, unified with those of the values written at one index."""
    axes = call.axes("self")
    for one, other in zip(_select(call), call.axes("src"), strict=True):
        call.algebra.unify(one, other)
    return axes


def _piece(call: Call, axes: Axes, kept: int) -> Axes:
    """The axes of a slice that has `kept` indices."""
    dim = call["dim"] % len(axes)
    size = call.algebra.size(axes[dim])
    if kept == size:
        return axes
    start, end, step = _bounds(call, size)
    if step != 1:
        call.freeze([axes[dim]], "indices are selected at a step")
        return [*axes[:dim], call.algebra.new(kept, frozen="picked by a step"), *axes[dim + 1 :]]
    before, piece, _ = call.algebra.split(axes[dim], [start, kept, size - end])
    if start:
        call.bind(before, "start")
    if end < size and isinstance(call.arguments["end"], int):
        call.bind(call.algebra.join([before, piece] if start else [piece]), "end")
    return [*axes[:dim], piece, *axes[dim + 1 :]]


def _bounds(call: Call, size: int) -> tuple[int, int, int]:
    start, end, _ = slice(call["start"], call["end"]).indices(size)
    return start, end, call["step"]


def _narrow(call: Call) -> Value:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    size, start, length = call.algebra.size(axes[dim]), call["start"], call["length"]
    if not isinstance(start, int):
        return None
    start %= size
    rest = size - start - length
    before, piece, _ = call.algebra.split(axes[dim], [start, length, rest])
    if start:
        call.bind(before, "start")
    call.bind(piece, "length")
    return [*axes[:dim], piece, *axes[dim + 1 :]]


def _index_select(call: Call) -> Value:
    axes = call.axes("self")
    dim = call["dim"] % len(axes)
    call.freeze([axes[dim]], "selected by index")
    return [*axes[:dim], call.axes("index")[0], *axes[dim + 1 :]]


def _index(call: Call) -> Value:
    """`x[i, :, j]`: the indices' dimensions replace the indexed ones, in place if these are
    adjacent, otherwise in front."""
    axes = call.axes("self")
    indices = list(call.arguments["indices"])
    at = [dim for dim, node in enumerate(indices) if isinstance(node, Node)]
    call.freeze([axes[dim] for dim in at], "selected by index")
    found = broadcast(call, [call.trace.values[indices[dim]] for dim in at])
    if len(found) + len(axes) - len(at) != len(call.shape):
        return None
    rest = [axis for dim, axis in enumerate(axes) if dim not in at]
    place = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    return [*rest[:place], *found, *rest[place:]]


def _make(call: Call) -> Value:
    """A tensor filled with one number: it works at any size, so its axes are free."""
    argument = "size" if "size" in call.arguments else "shape"
    result = call.fresh(call.shape)
    for index, axis in enumerate(result):
        call.bind(axis, argument, index)
    return result


def _one_hot(call: Call) -> Value:
    """Each index becomes a row of length `num_classes`."""
    (classes,) = call.fresh(call.shape[-1:], "looked up by index")
    return [*call.axes("self"), classes]


LAYOUT: dict[str, Rule] = {
    "one_hot": _one_hot,
    "unflatten": _unflatten,
    "permute": _permute,
    "expand": _expand,
    "index": _index,
    "index_select": _index_select,
    "narrow": _narrow,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
    "im2col": _im2col,
    "repeat_interleave": _repeat_interleave,
    "select": _select,
    "select_scatter": _select_scatter,
    "slice": _slice,
    "slice_scatter": _slice_scatter,
    "stack": _stack,
    "unbind": _unbind,
    "unfold": _windows,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    **dict.fromkeys(("flatten", "squeeze", "unsqueeze", "atleast_3d"), _regroup),
    **dict.fromkeys(("view_as", "reshape_as"), _reshape_as),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims", "mT"), _transpose),
    **dict.fromkeys(("t", "numpy_T"), _reverse),
    **dict.fromkeys(("movedim", "moveaxis"), _move),
    **dict.fromkeys(("expand_as",), _expand_as),
    **dict.fromkeys(("repeat", "tile"), _repeat),
    **dict.fromkeys(("cat", "concat", "concatenate"), _concatenate),
    **dict.fromkeys(("split", "split_with_sizes"), _split),
    **dict.fromkeys(("chunk", "tensor_split"), _chunk),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full"), _make),
}
