"""A program as it is easiest to read, computing the same bits. Layer: graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.fx import Node

from fitcompress.graph.program import Program, clone, prune

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
        elif node.target in _RESHAPES and _is_only_reshaped(node.args[0]):
            node.update_arg(0, node.args[0].args[0])
    return prune(_with_own_tables(plain))


def _sizes(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (1,)


def _is_only_reshaped(source: Any) -> bool:
    is_reshape = isinstance(source, Node) and source.target in _RESHAPES
    return is_reshape and len(source.users) == 1


def _with_own_tables(program: Program) -> Program:
    """The program in which no module reads a table of another one that reads it too, as copies of
    blocks do. The graph is edited in place."""
    tensors = dict(program.tensors)
    for node in list(program.graph.nodes):
        if node.op != "get_attr" or str(node.target) in program.trainable:
            continue
        home, _, name = str(node.target).rpartition(".")
        owners = {user: str(user.meta.get("owner", "")) for user in node.users}
        within = {owner[len(home) :] for owner in owners.values() if _is_at(owner, home)}
        for user, owner in owners.items():
            ending = max((e for e in within if owner.endswith(e)), key=len, default=None)
            if not home or ending is None or _is_at(owner, home):
                continue
            own = f"{owner.removesuffix(ending)}.{name}"
            if own not in tensors:
                tensors[own] = tensors[str(node.target)]
            with program.graph.inserting_before(user):
                table = program.graph.create_node("get_attr", own)
            user.replace_input_with(node, table)
    return replace(program, tensors=tensors)


def _is_at(owner: str, home: str) -> bool:
    return owner == home or owner.startswith(f"{home}.")
