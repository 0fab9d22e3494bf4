"""Makes a graph functional: in-place calls become calls that give new values. Layer: graph.

Where the nodes say which memory their values lie in (`meta["memory"]`, as recordings do), a write
through a view is carried back to the tensor that it is a view of, and from there to its other
views. Else such writes are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

from fitcompress.errors import CaptureError

__all__ = ["MutatedViewError", "functionalise", "value_dtype"]

aten = torch.ops.aten

_MAY_RETURN_ITS_INPUT = {"dropout", "feature_dropout", "alpha_dropout", "type_as", "dropout_"}
"""Calls whose schema promises a new tensor but that hand back their input in eval mode."""


class MutatedViewError(Exception):
    """An in-place call changes a tensor that is also seen through another name."""


def functionalise(graph: Graph) -> None:
    """Replaces in-place calls by their out-of-place twins; later uses of the changed tensor, and of
    all that shares its memory, see the new value. What a twin changes is noted in its
    `meta["mutates"]`. The graph is edited in place.

    Raises:
        MutatedViewError: the changed tensor is read later through another name, and the nodes do
            not say which memory is whose, or a view in between cannot be written back.
        CaptureError: a call that writes has no out-of-place form.
    """
    memory = _Memory({node: index for index, node in enumerate(graph.nodes)})
    for node in list(graph.nodes):
        mutated = _mutated_argument(node)
        if mutated is None:
            memory.add(node, _aliased_argument(node))
        else:
            _write(node, mutated, memory)


@dataclass
class _Memory:
    """Which nodes are views of which."""

    order: dict[Node, int]
    source: dict[Node, Node | None] = field(default_factory=dict)
    """What a node is a view of."""
    view: dict[Node, Node] = field(default_factory=dict)
    """The call that makes a view: the node itself, or the one whose value it replaces."""
    members: dict[Node, list[Node]] = field(default_factory=dict)
    """By the first of them all that may share a memory."""

    def add(self, node: Node, source: Node | None, view: Node | None = None) -> None:
        if source is not None and _is_known(node, source):
            source = source if node.meta["memory"] == source.meta["memory"] else None
        self.source[node], self.view[node] = source, view or node
        self.members.setdefault(self.root(node), []).append(node)

    def root(self, node: Node) -> Node:
        while (source := self.source.get(node)) is not None:
            node = source
        return node

    def later_users(self, node: Node, call: Node) -> set[Node]:
        return {user for user in node.users if self.order.get(user, -1) > self.order[call]}


def _is_known(*nodes: Node) -> bool:
    return all("memory" in node.meta for node in nodes)


def _write(call: Node, mutated: Node, memory: _Memory) -> None:
    root = memory.root(mutated)
    members = memory.members[root]
    live = [m for m in members if m is not mutated and memory.later_users(m, call)]
    if live and not _is_known(*members):
        raise MutatedViewError(f"'{call.target}' changes a tensor that '{live[0]}' shares")
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
    """New values for all that `mutated` is a view of."""
    child, value = mutated, twin
    while (parent := memory.source[child]) is not None:
        with call.graph.inserting_before(call):
            value = _written_back(call.graph, parent, value, memory.view[child])
        if value is not twin:
            value.meta.update(parent.meta, owner=call.meta.get("owner", ""))
        new[parent], child = value, parent


def _renewed(member: Node, call: Node, memory: _Memory, new: dict[Node, Node]) -> Node:
    """The view `member` of what its source is now."""
    if member not in new:
        source, view = memory.source[member], memory.view[member]
        assert source is not None, member
        current = _renewed(source, call, memory, new)
        with call.graph.inserting_before(call):
            args = (current, *view.args[1:])
            value = call.graph.create_node(view.op, view.target, args, view.kwargs)
        value.meta.update(member.meta)
        new[member] = value
    return new[member]


# --- writing back ---------------------------------------------------------------------------


def _written_back(graph: Graph, parent: Node, value: Node, view: Node) -> Node:
    """`parent` with `value` in place of its view."""
    packet = view.target.overloadpacket if isinstance(view.target, OpOverload) else view.target
    if packet in _SAME:
        return value
    if packet in _RESHAPES:
        shape = list(parent.meta["val"].shape)
        return graph.call_function(aten.reshape.default, (value, shape))
    if packet not in _WRITERS:
        raise MutatedViewError(f"a write through '{view.target}' cannot be undone")
    return _WRITERS[packet](graph, parent, value, view)


_SAME = (aten.alias, aten.detach, aten.to, aten.type_as, aten.contiguous, aten.dropout)
"""Views of the whole in the same order."""
_RESHAPES = (
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten),
    *(aten.squeeze, aten.unsqueeze, aten.view_as, aten.reshape_as),
)


def _into_slice(graph: Graph, parent: Node, value: Node, view: Node) -> Node:
    return graph.call_function(aten.slice_scatter.default, (parent, value, *view.args[1:]))


def _into_row(graph: Graph, parent: Node, value: Node, view: Node) -> Node:
    return graph.call_function(aten.select_scatter.default, (parent, value, *view.args[1:]))


def _swapped(graph: Graph, _: Node, value: Node, view: Node) -> Node:
    return graph.create_node("call_function", view.target, (value, *view.args[1:]))


def _permuted(graph: Graph, _: Node, value: Node, view: Node) -> Node:
    dims: Any = view.args[1]
    rank = len(dims)
    back = sorted(range(rank), key=lambda dim: dims[dim] % rank)
    return graph.call_function(aten.permute.default, (value, back))


_WRITERS: dict[Any, Callable[[Graph, Node, Node, Node], Node]] = {
    aten.slice: _into_slice,
    aten.select: _into_row,
    aten.transpose: _swapped,
    aten.t: _swapped,
    aten.permute: _permuted,
}


# --- what a call writes and shares ----------------------------------------------------------


def _mutated_argument(node: Node) -> Node | None:
    """The tensor that an in-place call changes."""
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
    raise CaptureError(
        f"making the graph functional: no out-of-place form of '{node.target}' is known"
    )


def _aliased_argument(node: Node) -> Node | None:
    """The tensor argument whose memory the result may share."""
    if node.op != "call_function" or not node.all_input_nodes:
        return None
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
    """A new node before `call` that computes what `call` writes."""
    assert isinstance(call.target, OpOverload)
    packet, overload = call.target._schema.name.split("::")[1], call.target._overloadname
    twin = getattr(getattr(aten, packet.removesuffix("_"), None), overload, None)
    if twin is None or twin._schema.is_mutable:
        raise CaptureError(f"making the graph functional: '{call.target}' has no out-of-place form")
    with call.graph.inserting_before(call):
        name = packet.strip("_")
        node = call.graph.create_node("call_function", twin, call.args, call.kwargs, name)
        node.meta.update(call.meta)
        if _promotes(call, mutated):
            del node.meta["val"]
            node = call.graph.call_function(aten.to.dtype, (node, value_dtype(mutated)))
            node.meta.update(call.meta)
    return node


def _promotes(call: Node, mutated: Node) -> bool:
    """Whether the out-of-place twin may give another dtype than the tensor that was written to."""
    dtypes = {value_dtype(source) for source in call.all_input_nodes} - {None, torch.bool}
    return value_dtype(mutated) is not None and len(dtypes) > 1


def value_dtype(node: Any) -> torch.dtype | None:
    """The dtype of a captured node's value, where it is a tensor."""
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.dtype if isinstance(value, Tensor) else None
