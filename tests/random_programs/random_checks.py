"""Checks that thinning is exact for every call of a program.

Whichever indices of each free atom are kept, a call on the kept parts of its operands must return
the kept part of the whole call's result. The whole call runs on operands filled, where nothing was
kept, with a number that its result must not depend on: NaN, or, if the call sums, multiplies or
compares along an axis, the neutral element.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from helpers.captured import kept_places
from random_programs.random_drawing import BATCH_SIZES, Scale
from random_programs.random_graphs import random_inputs
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from fitcompress.graph.axes.algebra import Atom, Axis
from fitcompress.graph.axes.rules.contractions import CONTRACTIONS
from fitcompress.graph.axes.trace import AxisTrace, free_weight_atoms
from fitcompress.graph.program import Program, operation
from fitcompress.student.width import thin_program

__all__ = ["Kept", "check_parts", "check_scales", "draw_kept", "thinned", "values_of"]

Kept = Mapping[Atom, list[int]]

UNDEFINED = {"empty", "empty_like", "rand_like", "randn_like", "argmax", "argmin"}
"""Calls whose values are random or uninitialized, or are indices along an axis."""

MIXING = {
    "layer_norm", "rms_norm", "_fused_rms_norm", "group_norm", "instance_norm",
    "std", "var", "var_mean", "std_mean", "median",
}  # fmt: skip
"""Calls with statistics over an axis: NaNs in their results are not compared."""

FILLS = {
    **dict.fromkeys(CONTRACTIONS.keys() - {"embedding"}, 0.0),
    **dict.fromkeys(("sum", "mean", "norm", "linalg_vector_norm", "count_nonzero", "any"), 0.0),
    **dict.fromkeys(("prod", "all"), 1.0),
    **dict.fromkeys(("amax", "softmax", "_softmax", "log_softmax", "_log_softmax"), -math.inf),
    "logsumexp": -math.inf,
    "amin": math.inf,
}
"""The neutral element of a call along an axis."""


def values_of(program: Program, inputs: list[Tensor]) -> dict[str, Any]:
    """Every value of the program by its node's name."""
    values: dict[str, Any] = {}
    feed = iter(inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = next(feed)
        elif node.op == "get_attr":
            values[node.name] = program.tensors[str(node.target)]
        elif node.op == "call_function":
            args, kwargs = map_arg((node.args, node.kwargs), lambda n: values[n.name])
            values[node.name] = node.target(*args, **kwargs)
    return values


# Parts of values


def indices(trace: AxisTrace, axes: list[Axis], kept: Kept) -> tuple[Tensor, ...]:
    """The kept indices of each dimension, shaped to index together."""
    rank = len(axes)
    return tuple(
        torch.tensor(kept_places(trace.algebra, axis, kept)).view(
            [-1 if dim == index else 1 for dim in range(rank)]
        )
        for index, axis in enumerate(axes)
    )


def part_of(trace: AxisTrace, axes: list[Axis], whole: Tensor, kept: Kept) -> Tensor:
    return whole[indices(trace, axes, kept)] if axes else whole


def whole_around(
    trace: AxisTrace, axes: list[Axis], part: Tensor, kept: Kept, fill: float
) -> Tensor:
    """A tensor whose kept part is `part`, with `fill` elsewhere."""
    if not axes:
        return part
    shape = [trace.algebra.size(axis) for axis in axes]
    whole = torch.full(shape, fill if part.is_floating_point() else 0, dtype=part.dtype)
    whole[indices(trace, axes, kept)] = part
    return whole


def draw_kept(trace: AxisTrace, random: Random) -> dict[Atom, list[int]]:
    """Random indices of each free atom, at least one of each."""
    return {
        atom: sorted(random.sample(range(atom.size), random.randrange(1, atom.size + 1)))
        for atom in sorted(free_weight_atoms(trace), key=lambda atom: atom.size)
    }


def thinned(program: Program, trace: AxisTrace, kept: Kept) -> Program:
    """The program on the kept parts of its tensors."""
    thin = thin_program(program, trace, {atom: len(places) for atom, places in kept.items()})
    tensors = {
        name: part_of(trace, trace.weights[name], program.tensors[name], kept)
        for name in thin.tensors
    }
    assert {n: v.shape for n, v in tensors.items()} == {n: v.shape for n, v in thin.tensors.items()}
    return replace(thin, tensors=tensors)


# One call


def whole_call(
    node: Node, trace: AxisTrace, parts: Mapping[str, Any], kept: Kept, literals: Node
) -> list[Tensor]:
    """The results of the whole call around the kept parts of its operands."""
    fill = FILLS.get(operation(node), math.nan)
    if operation(node) in ("max", "min") and "dim" in str(node.target):
        fill = -math.inf if operation(node) == "max" else math.inf

    def around(source: Node) -> Any:
        axes, part = trace.values.get(source.name), parts[source.name]
        return whole_around(trace, axes, part, kept, fill) if isinstance(part, Tensor) else part

    args, kwargs = map_arg((node.args, node.kwargs), around)
    if any(constant.node == node.name for constant in trace.constants):
        args, kwargs = with_floats_of(args, kwargs, literals)
    found = node.target(*args, **kwargs)
    if operation(node) == "mean":
        part = parts[node.args[0].name].numel() / parts[node.name].numel()
        found = found * (args[0].numel() / found.numel() / part)
    return list(found) if isinstance(found, (tuple, list)) else [found]


def with_floats_of(args: Any, kwargs: Any, other: Node) -> Any:
    """The arguments with the floats of another call, whose literals may follow a size."""
    args = tuple(
        new if isinstance(new, float) else old for old, new in zip(args, other.args, strict=True)
    )
    return args, {
        name: other.kwargs[name] if isinstance(other.kwargs[name], float) else old
        for name, old in kwargs.items()
    }


def assert_close(found: Tensor, expected: Tensor, what: str, may_be_unknown: bool) -> bool:
    """Assert equality up to the order of sums in double precision; false if nothing is known."""
    assert found.shape == expected.shape, f"{what}: {found.shape}, not {expected.shape}"
    if may_be_unknown and expected.is_floating_point():
        known = ~expected.isnan()
        found, expected = found[known], expected[known]
    elif may_be_unknown:
        return False
    if not found.numel():
        return False
    finite = expected[expected.isfinite()].abs() if expected.is_floating_point() else expected
    largest = float(finite.max()) if finite.numel() else 0.0
    torch.testing.assert_close(
        found,
        expected,
        rtol=1e-9,
        atol=1e-11 * max(1.0, largest),
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )
    return True


def check_parts(program: Program, trace: AxisTrace, kept: Kept) -> int:
    """Check every call of the program; returns how many could be compared by value."""
    thin = thinned(program, trace, kept)
    inputs = random_inputs(program, BATCH_SIZES[0])
    parts = values_of(program, inputs) | values_of(thin, inputs)
    literals = {node.name: node for node in thin.graph.nodes}
    compared = 0
    for node in program.graph.nodes:
        if not isinstance(node.target, OpOverload) or not trace.values.get(node.name):
            continue
        found, axes = parts[node.name], trace.values[node.name]
        several = isinstance(found, (tuple, list))
        founds, each_axes = (list(found), axes) if several else ([found], [axes])
        wholes = whole_call(node, trace, parts, kept, literals[node.name])
        for one, own, whole in zip(founds, each_axes, wholes, strict=True):
            expected = part_of(trace, own, whole, kept)
            unknown = operation(node) in MIXING or (several and not one.is_floating_point())
            if is_undefined(node, trace, parts):
                assert one.shape == expected.shape, node.format_node()
            else:
                compared += assert_close(one, expected, str(node.format_node()), unknown)
    return compared


def is_undefined(node: Node, trace: AxisTrace, parts: Mapping[str, Any]) -> bool:
    """Whether the whole call does not determine the part: also for convolutions that lose places,
    and for attention that loses places or derives its scale from a width that was thinned."""
    name = operation(node)
    if "conv" in name:
        moved = moved_dims(node.args[0], trace, parts)
        return any(dim > 1 for dim in moved)
    if name != "scaled_dot_product_attention":
        return name in UNDEFINED
    key = node.args[1]
    places, width = parts[key.name].dim() - 2, parts[key.name].dim() - 1
    moved = moved_dims(key, trace, parts)
    return places in moved or (width in moved and "scale" not in node.kwargs)


def moved_dims(node: Node, trace: AxisTrace, parts: Mapping[str, Any]) -> list[int]:
    """The dimensions of a value that lost indices."""
    sizes = map(trace.algebra.size, trace.values[node.name])
    pairs = zip(sizes, parts[node.name].shape, strict=True)
    return [dim for dim, (before, now) in enumerate(pairs) if before != now]


def check_scales(program: Program, trace: AxisTrace, kept: Kept, scales: dict[str, Scale]) -> None:
    """Floats made from a size follow it, and no other float moves."""
    thin = thinned(program, trace, kept)
    values = values_of(thin, random_inputs(program, BATCH_SIZES[0]))
    before = {node.name: floats_of(node) for node in program.graph.nodes}
    for node in thin.graph.nodes:
        scale = scales.get(node.name)
        if scale:
            size = values[scale.value].shape[scale.dim]
            assert floats_of(node) == pytest.approx([size**scale.power]), node.format_node()
        elif node.name in before:
            assert floats_of(node) == before[node.name], node.format_node()


def floats_of(node: Node) -> list[float]:
    return [v for v in (*node.args, *node.kwargs.values()) if isinstance(v, float)]
