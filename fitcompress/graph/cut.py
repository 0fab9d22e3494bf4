"""Cuts a program at named places, and finds the place that a layer's name means. Layer: graph.

A cut program returns the values at the cuts and holds only what they need, so training up to a hint
costs what it should.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch._ops import OpOverload
from torch.fx import Node

from fitcompress.errors import LayerError, near_misses
from fitcompress.graph.lift import BlockNodes
from fitcompress.graph.program import Program, clone, output_nodes, prune
from fitcompress.graph.shapes import propagate_shapes

__all__ = ["cut_program", "resolve_layer", "split_activation"]


def cut_program(program: Program, names: Sequence[str], *, with_output: bool) -> Program:
    """A program that returns the values of the named nodes in that order, then its outputs if
    asked. Nothing is modified.

    Raises:
        LayerError: there is no node of that name.
    """
    cut = clone(program)
    by_name = {node.name: node for node in cut.graph.nodes}
    for name in names:
        if name not in by_name or by_name[name].op == "output":
            raise LayerError(
                f"cutting the network: no value is called '{name}'",
                advice=near_misses(name, by_name),
            )
    taps = tuple(by_name[name] for name in names)
    cut.graph.output_node().args = ((*taps, *(output_nodes(cut.graph) if with_output else ())),)
    return prune(cut)


def resolve_layer(program: Program, name: str, blocks: Iterable[BlockNodes] = ()) -> str:
    """The name of the node that computes the output of a layer.

    name: of a block, a module (`layer2.1.conv1`, or `layer2`: its last value that is used outside
        of it), or a node.

    Raises:
        LayerError: nothing is called that, or the module has several results.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    members = {block: set(inside) for block, inside in blocks}
    owned = members.get(name) or {n.name for n in nodes if _is_within(n, name)}
    if not owned:
        if any(node.name == name for node in nodes):
            return name
        known = {*members, *_module_names(nodes), *(node.name for node in nodes)}
        raise LayerError(
            f"looking for layer '{name}': the network has none of that name",
            advice=near_misses(name, known) or "'fitcompress inspect' lists the layers.",
        )
    results = [node for node in nodes if node.name in owned and _is_used_outside(node, owned)]
    return _only_result(name, results)


def _is_within(node: Node, name: str) -> bool:
    owner = str(node.meta.get("owner", ""))
    return owner == name or owner.startswith(f"{name}.")


def _is_used_outside(node: Node, owned: set[str]) -> bool:
    return any(user.name not in owned for user in node.users)


def _only_result(name: str, results: Sequence[Node]) -> str:
    """The last result, if the others are only numbers about sizes."""
    tensors = [node for node in results if "sym_size" not in str(node.target)]
    if len(tensors) == 1:
        return tensors[0].name
    found = ", ".join(repr(node.name) for node in tensors) or "none"
    raise LayerError(
        f"looking for layer '{name}': expected one output, it has {len(tensors)} ({found})",
        advice="Name one of its parts, or one of these values.",
    )


def _module_names(nodes: Iterable[Node]) -> set[str]:
    """Every dotted path that owns a node, and every path above one."""
    names = set[str]()
    for node in nodes:
        parts = str(node.meta.get("owner", "")).split(".")
        names.update(".".join(parts[:length]) for length in range(1, len(parts) + 1))
    return names - {""}


_ACTIVATIONS = {
    "softmax": "softmax",
    "_softmax": "softmax",
    "log_softmax": "log_softmax",
    "_log_softmax": "log_softmax",
    "sigmoid": "sigmoid",
}


def split_activation(program: Program) -> tuple[Program, str]:
    """The program without the activation that a single output ends in, and its name or "". Nothing
    is modified.

    A softmax counts only over the last dimension.
    """
    outputs = output_nodes(program.graph)
    last, target = outputs[0], outputs[0].target
    if len(outputs) != 1 or not isinstance(target, OpOverload):
        return program, ""
    name = _ACTIVATIONS.get(target._schema.name.removeprefix("aten::"), "")
    rank = len(propagate_shapes(program)[last.name])
    if not name or (name != "sigmoid" and last.args[1] not in (-1, rank - 1)):
        return program, ""
    cut = clone(program)
    node = output_nodes(cut.graph)[0]
    cut.graph.output_node().args = ((node.args[0],),)
    return prune(cut), name
