"""Simplifies programs for readers, without changing a bit of what they compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import Target

from fitcompress.graph.program import Program, clone, prune
from fitcompress.graph.shapes import makes_tensors

__all__ = ["simplify"]

aten = torch.ops.aten
_RESHAPES = (aten.reshape.default, aten.view.default)


def simplify(program: Program) -> Program:
    """A copy without paddings by zero and without reshapes or copies before reshapes, in which each
    module has its own copy of the tables that it reads. Nothing is modified.

    Values keep their memory layout, on which the last bits of sums depend.
    """
    plain = clone(program)
    layouts = _Layouts(plain).run_on_meta()
    for node in list(plain.graph.nodes):
        if _pads_nothing(node) and _is_alike(layouts[node.args[0]], layouts[node]):
            node.replace_all_uses_with(node.args[0])
        elif node.target in _RESHAPES:
            while (source := _spare(node, layouts)) is not None:
                node.update_arg(0, source.args[0])
                plain.graph.erase_node(source)
    return prune(_with_own_tables(plain))


def _pads_nothing(node: Node) -> bool:
    sizes = node.args[1] if node.target is aten.pad.default else None
    return isinstance(sizes, (list, tuple)) and not any(sizes)


def _is_alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride()


def _spare(node: Node, layouts: Mapping[Any, Any]) -> Node | None:
    """The input of a reshape, if it is a reshape or copy in the same module without other readers,
    and the result has the same layout without it.
    """
    source = node.args[0]
    if not isinstance(source, Node) or len(source.users) != 1:
        return None
    is_copy = source.target is aten.contiguous.default and len(source.args) == 1
    if source.target not in _RESHAPES and not is_copy:
        return None
    if source.meta.get("owner") != node.meta.get("owner"):
        return None
    before, after = layouts[source.args[0]], layouts[node]
    try:
        direct = node.target(before, list(after.shape))  # type: ignore[operator]
    except RuntimeError:  # no view of it has this shape
        return None
    return source if _is_alike(direct, after) else None


class _Layouts(Interpreter):
    """Runs a program on the meta device, and keeps the result of every call."""

    def __init__(self, program: Program) -> None:
        super().__init__(torch.nn.Module(), graph=program.graph)
        self.program = program
        self.found: dict[Node, Any] = {}

    def run_on_meta(self) -> dict[Node, Any]:
        inputs = [
            torch.empty((2, *info.shape), dtype=info.dtype, device="meta")
            for info in self.program.inputs
        ]
        with torch.no_grad():
            self.run(*inputs)
        return self.found

    def get_attr(self, target: Target, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002 (fx's)
        return self.program.tensors[str(target)].to("meta")

    def call_function(self, target: Target, args: Any, kwargs: Any) -> Any:
        place = {"device": torch.device("meta")} if makes_tensors(target) else {}
        return super().call_function(target, args, {**kwargs, **place})

    def run_node(self, n: Node) -> Any:
        self.found[n] = super().run_node(n)
        return self.found[n]


def _with_own_tables(program: Program) -> Program:
    """The program with copied blocks reading their own tables instead of the original block's. The
    graph is edited in place.
    """
    tensors = dict(program.tensors)
    for node in list(program.graph.nodes):
        if node.op != "get_attr" or str(node.target) in program.trainable:
            continue
        for user, name in _own_names(node).items():
            tensors.setdefault(name, tensors[str(node.target)])
            with program.graph.inserting_before(user):
                table = program.graph.create_node("get_attr", name)
            user.replace_input_with(node, table)
    return replace(program, tensors=tensors)


def _own_names(table: Node) -> dict[Node, str]:
    """New names of a table, by call in a copied block: the path of the table relative to the calls
    closest to it, in the block of the call.
    """
    name = str(table.target)
    owners = {user: str(user.meta.get("owner", "")) for user in table.users}
    shared = {user: _common_path(name, owner) for user, owner in owners.items()}
    home = max(shared.values(), key=len, default="")
    endings = {owners[user][len(home) :] for user, path in shared.items() if path == home}
    found: dict[Node, str] = {}
    for user, owner in owners.items():
        ending = max((e for e in endings if owner.endswith(e)), key=len, default=None)
        if ending is not None and home and shared[user] != home:
            found[user] = f"{owner.removesuffix(ending)}{name[len(home) :]}"
    return found


def _common_path(one: str, other: str) -> str:
    """The longest dotted path with which both begin."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return ".".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
