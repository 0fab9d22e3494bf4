"""Functionalizes a graph: replaces in-place calls by calls that return new values.

If the nodes know which storage their values share (`meta["memory"]`, set by recordings), a write to
a view is propagated to its base and from there to the other views. Otherwise such writes raise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fitcompress.errors import CaptureError
from fitcompress.graph.program import named_arguments

__all__ = ["MutatedViewError", "functionalize", "value_dtype"]

aten = torch.ops.aten

_MAY_RETURN_ITS_INPUT = {"dropout", "feature_dropout", "alpha_dropout", "type_as", "dropout_"}
"""Calls that return their input in eval mode, although their schema declares a new tensor."""


class MutatedViewError(Exception):
    """An in-place call writes to memory that another value shares."""


def functionalize(graph: Graph) -> None:
    """Replaces in-place calls by their out-of-place variants. Later uses of the changed tensor, and
    of values that share its memory, get the new value; the `meta["mutates"]` of the new call is the
    tensor that was written to. Edits the graph in place.

    Raises:
        MutatedViewError: the written memory is read later through another value, and the nodes do
            not know which memory they share, or a view cannot be written back to its base.
        CaptureError: a call that writes has no out-of-place variant.
    """
    memory = _Memory({node: index for index, node in enumerate(graph.nodes)})
    for node in list(graph.nodes):
        mutated = _mutated_argument(node)
        if mutated is None:
            memory.add(node, _aliased_argument(node))
        elif torch.Tag.inplace_view in node.target.tags:
            _replace_view(node, mutated, memory)
        else:
            _write(node, mutated, memory)


@dataclass
class _Memory:
    """Which nodes are views of which others."""

    order: dict[Node, int]
    source: dict[Node, Node | None] = field(default_factory=dict)
    """The base of each view."""
    view: dict[Node, Node] = field(default_factory=dict)
    """The call that creates a view: the node itself, or the node that it replaces."""
    members: dict[Node, list[Node]] = field(default_factory=dict)
    """By root: all nodes that may share its memory."""

    def add(self, node: Node, source: Node | None) -> None:
        self.source[node], self.view[node] = source, node
        self.members.setdefault(self.root(node), []).append(node)

    def root(self, node: Node) -> Node:
        while (source := self.source.get(node)) is not None:
            node = source
        return node

    def later_users(self, node: Node, call: Node) -> set[Node]:
        return {user for user in node.users if self.order.get(user, -1) > self.order[call]}


def _is_known(*nodes: Node) -> bool:
    return all("memory" in node.meta for node in nodes)


def _replace_view(call: Node, mutated: Node, memory: _Memory) -> None:
    """Replaces an in-place change of shape by a view. No values change, so nothing that shares the
    memory is affected.
    """
    twin = _out_of_place(call, mutated)
    memory.order[twin] = memory.order[call]
    later = memory.later_users(mutated, call)
    mutated.replace_all_uses_with(twin, delete_user_cb=later.__contains__)
    call.replace_all_uses_with(twin)
    call.graph.erase_node(call)
    memory.add(twin, mutated)


def _write(call: Node, mutated: Node, memory: _Memory) -> None:
    """Replaces a call that writes to `mutated`."""
    root = memory.root(mutated)
    members = memory.members[root]
    live = [m for m in members if m is not mutated and memory.later_users(m, call)]
    if live and not _is_known(*members):
        raise MutatedViewError(f"'{call.target}' writes to memory that '{live[0]}' shares")
    twin = _out_of_place(call, mutated)
    twin.meta["mutates"] = root
    new = {mutated: twin}
    if live:
        _carry_back(call, mutated, twin, memory, new)
        for member in live:
            _renewed(member, call, memory, new)
    for old, value in new.items():
        memory.order[value] = memory.order[call]
        later = memory.later_users(old, call)
        old.replace_all_uses_with(value, delete_user_cb=later.__contains__)
    call.replace_all_uses_with(twin)
    call.graph.erase_node(call)
    for old, value in new.items():
        source = memory.source[old]
        memory.source[value] = new.get(source) if source is not None else None
        memory.view[value] = memory.view[old]
    for value in new.values():
        memory.members.setdefault(memory.root(value), []).append(value)


def _carry_back(
    call: Node, mutated: Node, twin: Node, memory: _Memory, new: dict[Node, Node]
) -> None:
    """Adds to `new` the values of the bases of `mutated` after the write."""
    child, value = mutated, twin
    while (parent := memory.source[child]) is not None:
        view = memory.view[child]
        with call.graph.inserting_before(call):
            if view.target is operator.getitem:  # `parent` is the call that returns the pieces
                pieces, parent = parent, memory.source[parent]
                assert parent is not None, pieces
                value = _into_piece(call.graph, parent, value, memory.view[pieces], view.args[1])
            else:
                value = _written_back(call.graph, parent, value, view)
        if value is not twin:
            value.meta.update(parent.meta, owner=call.meta.get("owner", ""))
        new[parent], child = value, parent


def _renewed(member: Node, call: Node, memory: _Memory, new: dict[Node, Node]) -> Node:
    """The view `member` of the new value of its base."""
    if member not in new:
        source, view = memory.source[member], memory.view[member]
        assert source is not None, member
        current = _renewed(source, call, memory, new)
        origin = memory.source[view]
        args, kwargs = map_arg((view.args, view.kwargs), lambda n: current if n is origin else n)
        with call.graph.inserting_before(call):
            value = call.graph.create_node(view.op, view.target, args, kwargs)
        value.meta.update(member.meta)
        new[member] = value
    return new[member]


# --- writing back ---------------------------------------------------------------------------


def _written_back(graph: Graph, parent: Node, value: Node, view: Node) -> Node:
    """`parent` with `value` written to its view."""
    packet = view.target.overloadpacket if isinstance(view.target, OpOverload) else view.target
    if packet in _SAME:
        return value
    if packet in _RESHAPES and value_dtype(view) == value_dtype(parent):
        shape = list(parent.meta["val"].shape)
        return graph.call_function(aten.reshape.default, (value, shape))
    if packet not in _WRITERS:
        raise MutatedViewError(f"a write to a view made by '{view.target}' is not supported")
    target, *arguments = _WRITERS[packet](*view.args[1:])
    whole = (parent,) if target in _SCATTERS else ()
    return graph.call_function(target, (*whole, value, *arguments))


_SAME = (
    aten.alias, aten.detach, aten.to, aten.type_as, aten.contiguous, aten.lift_fresh,
    aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout,
)  # fmt: skip
"""Views of all elements in the same shape."""
_RESHAPES = (
    aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.ravel,
    aten.squeeze, aten.unsqueeze, aten.view_as, aten.reshape_as,
)  # fmt: skip
_SCATTERS = (
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.diagonal_scatter.default,
)
"""Calls that return a tensor with other values written to a part of it."""


def _permute_back(dims: Sequence[int]) -> tuple[Any, ...]:
    back = sorted(range(len(dims)), key=lambda dim: dims[dim] % len(dims))
    return aten.permute.default, back


_WRITERS: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.slice: lambda *bounds: (aten.slice_scatter.default, *bounds),
    aten.narrow: lambda dim, start, length: (
        aten.slice_scatter.default,
        dim,
        start,
        start + length if start + length else None,
    ),
    aten.select: lambda *place: (aten.select_scatter.default, *place),
    aten.diagonal: lambda *place: (aten.diagonal_scatter.default, *place),
    aten.transpose: lambda *dims: (aten.transpose.int, *dims),
    aten.swapaxes: lambda *dims: (aten.transpose.int, *dims),
    aten.swapdims: lambda *dims: (aten.transpose.int, *dims),
    aten.t: lambda: (aten.t.default,),
    aten.numpy_T: lambda: (aten.numpy_T.default,),
    aten.mT: lambda: (aten.mT.default,),
    aten.permute: _permute_back,
    aten.movedim: lambda source, destination: (
        (aten.movedim.intlist, destination, source)
        if isinstance(source, (list, tuple))
        else (aten.movedim.int, destination, source)
    ),
}
"""By view: a function of its arguments after the first that returns the call which writes back to
the base, followed by that call's arguments."""


def _into_piece(graph: Graph, parent: Node, value: Node, pieces: Node, index: Any) -> Node:
    """`parent` with `value` written to one of the pieces that a call splits it into."""
    values, given = pieces.meta["val"], named_arguments(pieces)
    dim = given.get("dim")
    if not isinstance(dim, int) or dim % parent.meta["val"].ndim == 0:
        raise MutatedViewError(f"a write to a piece of '{pieces.target}' is not supported")
    if pieces.target is aten.unbind.int:
        arguments = (parent, value, dim, index)
        return graph.call_function(aten.select_scatter.default, arguments)
    starts = [0, *accumulate(piece.shape[dim] for piece in values)]
    bounds = (starts[index], starts[index] + values[index].shape[dim])
    return graph.call_function(aten.slice_scatter.default, (parent, value, dim, *bounds))


# --- what a call writes and shares ----------------------------------------------------------


def _mutated_argument(node: Node) -> Node | None:
    """The tensor that an in-place call writes to."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return None
    if node.target._schema.name.endswith("batch_norm"):
        return None
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        if (
            argument.alias_info is not None
            and argument.alias_info.is_write
            and isinstance(value, Node)
        ):
            return value
    raise _no_variant(node.target)


def _aliased_argument(node: Node) -> Node | None:
    """The argument whose memory the result shares, or may share if the nodes do not know."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    if _is_known(node, *node.all_input_nodes):
        memory = node.meta["memory"]
        return next((n for n in node.all_input_nodes if n.meta["memory"] == memory), None)
    if not isinstance(node.target, OpOverload):
        return node.all_input_nodes[0]
    schema = node.target._schema
    if schema.name.removeprefix("aten::") in _MAY_RETURN_ITS_INPUT:
        return node.all_input_nodes[0]
    for argument, value in zip(schema.arguments, node.args, strict=False):
        if argument.alias_info is not None and not argument.alias_info.is_write:
            return value if isinstance(value, Node) else None
    return None


def _out_of_place(call: Node, mutated: Node) -> Node:
    """A new node before `call` that computes the value `call` writes."""
    assert isinstance(call.target, OpOverload)
    twin = _twin(call.target)
    name = call.target._schema.name.split("::")[1].strip("_")
    with call.graph.inserting_before(call):
        node = call.graph.create_node("call_function", twin, call.args, call.kwargs, name)
        node.meta.update(call.meta)
        if _result_dtype(twin, call) != value_dtype(mutated):
            del node.meta["val"]
            node = call.graph.call_function(aten.to.dtype, (node, value_dtype(mutated)))
            node.meta.update(call.meta)
    return node


def _twin(target: OpOverload) -> OpOverload:
    """The out-of-place variant of `target`: the name without its underscore, and the same overload
    or one with the same arguments.
    """
    packet = getattr(aten, target._schema.name.split("::")[1].removesuffix("_"), None)
    names = [target._overloadname, *(packet.overloads() if packet else ())]
    wanted = [str(argument.real_type) for argument in target._schema.arguments]
    for name in names:
        twin = getattr(packet, name, None)
        if twin is None or twin._schema.is_mutable:
            continue
        if [str(argument.real_type) for argument in twin._schema.arguments] == wanted:
            return twin  # type: ignore[no-any-return]
    raise _no_variant(target)


def _no_variant(target: OpOverload) -> CaptureError:
    return CaptureError(
        f"functionalizing the graph: '{target}' has no known out-of-place variant",
        code="in-place-call-unsupported",
        advice="Use an out-of-place version of this operation.",
        call=str(target),
    )


def _result_dtype(twin: OpOverload, call: Node) -> torch.dtype | None:
    """The dtype of the twin's result for the example values."""
    args, kwargs = map_arg((call.args, dict(call.kwargs)), lambda node: node.meta["val"])
    with torch.no_grad():
        value = twin(*args, **kwargs)
    return value.dtype if isinstance(value, Tensor) else None


def value_dtype(node: Any) -> torch.dtype | None:
    """The dtype of a captured node's value, if it is a tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dtype if isinstance(value, Tensor) else None
