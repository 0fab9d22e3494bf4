"""Passes that bring a captured graph into the flat functional form.

Each pass takes a graph whose nodes still have an example value in `meta["val"]` (for dtypes) and
edits it in place. The outputs stay bit-identical.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from fitcompress.errors import CaptureError
from fitcompress.graph.capture.functionalize import functionalize, value_dtype
from fitcompress.graph.capture.scalars import inline_numbers
from fitcompress.graph.program import RECURRENT_CALLS, Program, prune

__all__ = ["fold_constants", "normalize", "placed_on", "refuse_state"]

aten = torch.ops.aten

_NEW_OF_FACTORY = {
    aten.zeros.default: aten.new_zeros.default,
    aten.ones.default: aten.new_ones.default,
    aten.empty.memory_format: aten.new_empty.default,
    aten.full.default: aten.new_full.default,
}
"""Factories and their variants on the device of a tensor; both start with the size (and the fill
value).
"""

_PLACEMENT = ("device", "layout", "pin_memory", "non_blocking")
"""Arguments that place a tensor on a device; removed, since the network may be moved."""


def normalize(program: Program) -> Program:
    """The same function in the flat form: functional, constants folded, without no-ops, devices and
    dead code.

    Raises:
        MutatedViewError: an in-place call on a view cannot be functionalized.
        CaptureError: the network keeps state between calls.
    """
    functionalize(program.graph)
    program = prune(program)
    _refuse_state(program.graph)
    _simplify(program.graph)
    program = inline_numbers(fold_constants(program))
    _forget_devices(program.graph)
    return prune(program)


def fold_constants(program: Program) -> Program:
    """Computes every value that depends on no input, weight or buffer, and stores it as a buffer
    `<owner>.constant_<i>`.
    """
    graph, tensors = program.graph, dict(program.tensors)
    values: dict[Node, Any] = {}
    for node in graph.nodes:
        if node.meta.pop("is_literal", False):
            values[node] = tensors.pop(str(node.target))
        elif node.op == "call_function" and _is_constant_call(node, values):
            values[node] = _evaluate(node, values)
    for node, value in list(values.items()):
        users = [user for user in node.users if user not in values]
        if not users or not isinstance(value, Tensor):
            continue
        name = _fresh_name(
            str((node.meta if node.meta.get("owner") else users[0].meta)["owner"]), tensors
        )
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
        with graph.inserting_before(node):
            constant = graph.create_node("get_attr", name)
        constant.meta.update(node.meta)
        node.replace_all_uses_with(constant)
    return prune(Program(graph, tensors, program.trainable, program.inputs))


# --- state -----------------------------------------------------------------------------------


def _refuse_state(graph: Graph) -> None:
    for node in graph.nodes:
        mutated = node.meta.pop("mutates", None)
        if mutated is not None:
            refuse_state(mutated)


def refuse_state(mutated: Node) -> None:
    """Raise if a tensor that a call writes to belongs to the network rather than to the run.

    Raises:
        CaptureError: it belongs to the network.
    """
    if mutated.op == "get_attr" and not mutated.meta.get("is_literal"):
        raise CaptureError(
            f"capturing the network: it changes its own tensor '{mutated.target}' when it runs",
            code="network-keeps-state",
            advice="Only networks without state between calls can be distilled.",
            tensor=str(mutated.target),
        )


# --- simplification -------------------------------------------------------------------------------


def _simplify(graph: Graph) -> None:
    """Drops no-ops and rewrites calls into their usual form."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        _use_usual_form(node)
        if _changes_nothing(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _use_usual_form(node: Node) -> None:
    """Rewrites a call into the form of captured eager code, so that each operation has one form.
    `view` becomes `reshape`, which accepts any memory layout.
    """
    if node.target in (aten.view.default, aten._unsafe_view.default):
        node.target = aten.reshape.default
    elif node.target in _TENSOR_FORMS:
        node.target = _TENSOR_FORMS[node.target]
    elif node.target in (aten.chunk.default, aten.split.Tensor):
        _use_written_sizes(node)
    elif node.target in RECURRENT_CALLS:
        _use_training_form(node)
    elif node.target is aten.copy.default:
        _use_differentiable_copy(node)
    elif node.target in (aten._convolution.default, aten.convolution.default):
        weight = node.args[1]
        assert isinstance(weight, Node)
        _use_plain_convolution(node, weight.meta["val"].ndim - 2)


_TENSOR_FORMS = {
    aten.add.Scalar: aten.add.Tensor,
    aten.sub.Scalar: aten.sub.Tensor,
    aten.mul.Scalar: aten.mul.Tensor,
    aten.div.Scalar: aten.div.Tensor,
}


def _use_written_sizes(node: Node) -> None:
    """Rewrites `chunk` and `split` to explicit sizes, since thinned pieces may differ in size. The
    batch dimension, whose size is unknown, does not change."""
    pieces, (source, _, *rest) = node.meta["val"], node.args
    dim: Any = rest[0] if rest else node.kwargs.get("dim", 0)
    if dim % pieces[0].ndim > 0:
        node.target = aten.split_with_sizes.default
        node.args, node.kwargs = (source, [int(piece.shape[dim]) for piece in pieces], dim), {}


def _use_differentiable_copy(node: Node) -> None:
    """Rewrites `copy` as an expansion and a cast: `aten::copy` has no gradient."""
    target, source = node.args[:2]
    assert isinstance(target, Node) and isinstance(source, Node)
    node.target, node.args, node.kwargs = aten.expand_as.default, (source, target), {}
    kind = target.meta["val"].dtype
    if source.meta["val"].dtype != kind:
        with node.graph.inserting_before(node):
            converted = node.graph.call_function(aten._to_copy.default, (source,), {"dtype": kind})
        converted.meta.update(source.meta, val=source.meta["val"].to(kind))
        node.args = (converted, target)


def _use_training_form(node: Node) -> None:
    """Rewrites a recurrent call with `train=True` and no dropout, which computes the same: cuDNN
    has no gradients for `train=False`.
    """
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    args = list(node.args)
    args[names.index("dropout")], args[names.index("train")] = 0.0, True
    node.args = tuple(args)


def _use_plain_convolution(node: Node, rank: int) -> None:
    source, weight, bias, stride, padding, dilation, transposed, extra, groups = node.args[:9]
    if transposed:
        overload = "default" if rank == 1 else "input"
        node.target = getattr(getattr(aten, f"conv_transpose{rank}d"), overload)
        node.args = (source, weight, bias, stride, padding, extra, groups, dilation)
    else:
        node.target = getattr(aten, f"conv{rank}d").default
        node.args = (source, weight, bias, stride, padding, dilation, groups)


def _changes_nothing(node: Node) -> bool:
    match node.target:
        case (
            aten.detach.default
            | aten.alias.default
            | aten.lift_fresh_copy.default
            | aten.lift.default
        ):
            return True
        case aten.dropout.default | aten.feature_dropout.default | aten.alpha_dropout.default:
            return bool(node.args[1] == 0)
        case aten.slice.Tensor:
            return _is_full_slice(node.args[2:])
    if node.target in _CASTS:
        return not node.kwargs.get("memory_format") and value_dtype(node) == value_dtype(
            node.args[0]
        )
    return False


_CASTS = (
    aten.to.dtype,
    aten.to.device,
    aten.to.other,
    aten.to.dtype_layout,
    aten.type_as.default,
    aten._to_copy.default,
)


def _is_full_slice(bounds: Sequence[Any]) -> bool:
    defaults: list[Any] = [None, None, 1]
    start, end, step = [*bounds, *defaults[len(bounds) :]]
    reaches_end = end is None or (isinstance(end, int) and end >= 2**63 - 1)
    return start in (None, 0) and reaches_end and step == 1


# --- constants and devices ------------------------------------------------------------------------


def _is_constant_call(node: Node, values: dict[Node, Any]) -> bool:
    is_pure = (
        isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )
    return (is_pure or not isinstance(node.target, OpOverload)) and all(
        source in values for source in node.all_input_nodes
    )


def _evaluate(node: Node, values: dict[Node, Any]) -> Any:
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if isinstance(node.target, OpOverload):
        args, kwargs = placed_on(torch.device("cpu"), node.target, tuple(args), kwargs)
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def placed_on(
    device: torch.device, target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call with `device`, if it takes one."""
    names = [argument.name for argument in target._schema.arguments]
    if "device" not in names:
        return args, kwargs
    place = names.index("device")
    if place < len(args):
        return (*args[:place], device, *args[place + 1 :]), kwargs
    return args, {**kwargs, "device": device}


def _fresh_name(owner: str, taken: dict[str, Tensor]) -> str:
    prefix = f"{owner}." if owner else ""
    index = 0
    while f"{prefix}constant_{index}" in taken:
        index += 1
    return f"{prefix}constant_{index}"


def _forget_devices(graph: Graph) -> None:
    """Removes every literal that places a tensor on a device; factories with a dynamic size use the
    device of the first input.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        if node.target in _CASTS and node.target is not aten.type_as.default:
            _replace(node, aten.to.dtype, (node.args[0], value_dtype(node)), _memory_format(node))
        elif node.target in _NEW_OF_FACTORY:
            reference = next(iter(graph.nodes))
            kwargs = {"dtype": value_dtype(node)}
            _replace(node, _NEW_OF_FACTORY[node.target], (reference, *node.args), kwargs)
        else:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k not in _PLACEMENT}


def _memory_format(node: Node) -> dict[str, Any]:
    value = node.kwargs.get("memory_format")
    return {} if value is None else {"memory_format": value}


def _replace(node: Node, target: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    node.target, node.args, node.kwargs = target, args, kwargs
