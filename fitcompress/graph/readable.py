"""A program as it is easiest to read, computing the same bits. Layer: graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import Target

from fitcompress.graph.program import Program, clone, makes_tensors, prune

__all__ = ["in_readable_form"]

aten = torch.ops.aten
_RESHAPES = (aten.reshape.default, aten.view.default)


def in_readable_form(program: Program) -> Program:
    """A copy without paddings by nothing and reshapes of reshapes, in which each module has its own
    copy of the tables that it reads. Nothing is modified."""
    plain = clone(program)
    for node in plain.graph.nodes:
        if node.target is aten.pad.default and not any(_sizes(node.args[1])):
            node.replace_all_uses_with(node.args[0])
        elif node.target in _RESHAPES and _is_passed_on(node.args[0], node, _RESHAPES):
            _skip(node)
    plain = prune(plain)
    _drop_copies(plain)
    return prune(_with_own_tables(plain))


def _drop_copies(program: Program) -> None:
    """Leaves out `contiguous` before a reshape that gives the same layout in memory without it.
    The graph is edited in place."""
    layouts = _Layouts(program).run_on_meta()
    for node in program.graph.nodes:
        if node.target is not aten.reshape.default or len(node.args[0].args) != 1:
            continue
        if _is_passed_on(node.args[0], node, (aten.contiguous.default,)):
            before, after = layouts[node.args[0].args[0]], layouts[node]
            if before.reshape(after.shape).stride() == after.stride():
                _skip(node)


def _skip(node: Node) -> None:
    """Lets a call read what the call that it reads reads."""
    source = node.args[0]
    assert isinstance(source, Node), node
    node.update_arg(0, source.args[0])


class _Layouts(Interpreter):
    """Runs a program without values, and keeps what every call gives."""

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


def _sizes(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (1,)


def _is_passed_on(source: Any, user: Node, targets: Sequence[Any]) -> bool:
    """Whether a value is of such a call, and only for the user, which stands in the same module."""
    if not isinstance(source, Node) or source.target not in targets or len(source.users) != 1:
        return False
    return bool(source.meta.get("owner") == user.meta.get("owner"))


def _with_own_tables(program: Program) -> Program:
    """The program in which the copy of a block does not read the tables of the block, but its own
    of the same name. The graph is edited in place."""
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
    """By call that reads a table from a module that is less near to it than others that do: its
    name in a module like theirs."""
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
    """The longest dotted path that both begin with."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return ".".join(part for part, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
