"""Axis rules of operations that sum over an axis: convolutions, linear layers, matrix products,
attention, recurrent networks."""

from __future__ import annotations

from fitcompress.graph.axes.algebra import Axis
from fitcompress.graph.axes.builder import Axes, Value
from fitcompress.graph.axes.rules.call import KERNEL, PLACE, Call, Rule
from fitcompress.graph.axes.rules.elementwise import broadcast, is_fixed

__all__ = ["CONTRACTIONS", "RECURRENT"]

RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""Operations that are a whole recurrent network; their weights are a list."""


def _convolution(call: Call) -> Value:
    """Weight (out, in / groups, *kernel), or (in, out / groups, *kernel) if transposed. A spatial
    dimension may hold channels (as in ECA); it stays free if the convolution keeps its size.
    """
    axes, weight = call.axes("input"), call.axes("weight")
    transposed = "transpose" in call.name
    call.freeze(weight[2:], KERNEL)
    out = call.algebra.new(call.shape[1])
    call.trace.learn(out)
    call.trace.read(axes[1])
    near, far = (axes[1], out) if transposed else (out, axes[1])
    _unify_grouped(call, near, far, weight)
    if call.is_tensor("bias"):
        call.algebra.unify(out, call.axes("bias")[0])
    return [axes[0], out, *(_places(call, dim, axes[dim]) for dim in range(2, len(axes)))]


def _places(call: Call, dim: int, axis: Axis) -> Axis:
    stride = call["stride"]
    step = stride[(dim - 2) % len(stride)] if isinstance(stride, list) else stride
    if step == 1 and call.shape[dim] == call.algebra.size(axis) and not is_fixed(call, axis):
        return axis
    call.freeze([axis], PLACE)
    return call.algebra.new(call.shape[dim], frozen=PLACE)


def _unify_grouped(call: Call, near: Axis, far: Axis, weight: Axes) -> None:
    """The weight's first dimension is all of `near`, its second is one group of `far`."""
    groups, size = call["groups"], call.algebra.size
    near_group, _ = call.algebra.regroup([near], [groups, size(near) // groups])
    far_group, far_inner = call.algebra.regroup([far], [groups, size(far) // groups])
    call.algebra.unify(near_group, far_group)
    call.algebra.unify(weight[0], near)
    call.algebra.unify(weight[1], far_inner)
    if groups > 1:
        call.bind(near_group, "groups")


def _linear(call: Call) -> Value:
    *leading, features = call.axes("input")
    out, inner = call.axes("weight")
    call.trace.learn(out)
    call.trace.read(features)
    call.algebra.unify(features, inner)
    if call.is_tensor("bias"):
        call.algebra.unify(out, call.axes("bias")[0])
    return [*leading, out]


def _matmul(call: Call) -> Value:
    left_name, right_name = ("mat1", "mat2") if "mat1" in call.arguments else ("self", "mat2")
    if "other" in call.arguments:
        right_name = "other"
    if "batch1" in call.arguments:
        left_name, right_name = "batch1", "batch2"
    if "vec" in call.arguments:
        right_name = "vec"
    left, right = call.axes(left_name), call.axes(right_name)
    result, inner = _product(call, left, right)
    call.contract(inner)
    if left_name in ("mat1", "batch1"):
        broadcast(call, [call.axes("self"), result])
    return result


def _product(call: Call, left: Axes, right: Axes) -> tuple[Axes, Axis]:
    """The axes of `left @ right` and the axis that is summed over. Leading dimensions broadcast; a
    vector has no rows or columns."""
    rows, columns = left[-2:-1], right[-1:] if len(right) > 1 else []
    inner, other = left[-1], right[-2] if len(right) > 1 else right[-1]
    call.algebra.unify(inner, other)
    return [*broadcast(call, [left[:-2], right[:-2]]), *rows, *columns], inner


def _attention(call: Call) -> Value:
    """softmax(q k^T) v over (..., places, width)."""
    query, key, value = (call.axes(name) for name in ("query", "key", "value"))
    call.bind_constant("scale", [query[-1]])
    weights, _ = _product(call, query, [*key[:-2], key[-1], key[-2]])
    if call.is_tensor("attn_mask"):
        broadcast(call, [weights, call.axes("attn_mask")])
    result, _ = _product(call, weights, value)
    return result


def _einsum(call: Call) -> Value:
    equation = call["equation"].replace(" ", "")
    operands = call.list_axes("tensors")
    if "->" not in equation or "." in equation:
        return None
    inputs, output = equation.split("->")
    known: dict[str, Axis] = {}
    for letters, axes in zip(inputs.split(","), operands, strict=True):
        for letter, axis in zip(letters, axes, strict=True):
            if call.algebra.size(axis) != call.algebra.size(known.get(letter, axis)):
                return None
            call.algebra.unify(known.setdefault(letter, axis), axis)
    summed = [letter for letter in known if letter not in output]
    if len(summed) == 1:
        call.contract(known[summed[0]])
    return [known[letter] for letter in output]


def _embedding(call: Call) -> Value:
    table = call.axes("weight")
    call.freeze(table[:1], "looked up by index")
    call.trace.learn(table[1])
    return [*call.axes("indices"), table[1]]


def _recurrent(call: Call) -> Value:
    """Input (..., features); for each layer and direction, weights (gates x hidden, features) and
    (gates x hidden, hidden) and their biases; states (layers x directions, batch, hidden)."""
    if "params" not in call.arguments or "input" not in call.arguments:
        return None
    *leading, features = call.axes("input")
    call.freeze(leading, f"{call.name} depends on the order along it")
    directions, per = 1 + call["bidirectional"], 4 if call["has_biases"] else 2
    params = call.list_axes("params")
    if len(params) != call["num_layers"] * directions * per:
        return None  # projections
    states = [call.axes("hx")] if call.is_tensor("hx") else call.list_axes("hx")
    hidden = _hidden(call, leading, states)
    call.trace.read(features)
    for layer in range(call["num_layers"]):
        start = layer * directions * per
        for index, axes in enumerate(params[start : start + directions * per]):
            _unify_gates(call, axes[0], hidden)
            if len(axes) == 2:
                call.algebra.unify(axes[1], features if index % per == 0 else hidden)
        features = call.algebra.join([hidden] * directions)
    return [[*leading, features], *([*state[:-1], hidden] for state in states)]


def _hidden(call: Call, leading: Axes, states: list[Axes]) -> Axis:
    """The hidden axis, shared by all states; `leading` are the input's time and batch axes."""
    time = 1 if call["batch_first"] and len(leading) > 1 else 0
    hidden = states[0][-1]
    for layers, *batch, own in states:
        call.freeze([layers], "one entry for each layer and direction")
        call.algebra.unify(hidden, own)
        broadcast(call, [batch, [*leading[:time], *leading[time + 1 :]]])
    call.trace.learn(hidden)
    return hidden


def _unify_gates(call: Call, axis: Axis, hidden: Axis) -> None:
    """Unify the gates, which are laid end to end along `axis`, with the hidden axis."""
    size = call.algebra.size(hidden)
    call.algebra.unify_all(
        [hidden, *call.algebra.split(axis, [size] * (call.algebra.size(axis) // size))]
    )


CONTRACTIONS: dict[str, Rule] = {
    "linear": _linear,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "embedding": _embedding,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm", "mv"), _matmul),
    **dict.fromkeys(RECURRENT, _recurrent),
}
