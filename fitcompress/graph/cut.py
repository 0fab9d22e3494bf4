"""Cuts a program at named nodes, and finds the node of a layer by its name.

A cut program returns the values at the cuts and contains only what they depend on, so that training
up to a hint does not pay for the rest of the network.
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
    """A program that returns the values of the named nodes in that order, then, with `with_output`,
    the outputs. Nothing is modified.

    Raises:
        LayerError: no node has that name.
    """
    cut = clone(program)
    by_name = {node.name: node for node in cut.graph.nodes}
    for name in names:
        if name not in by_name or by_name[name].op == "output":
            raise LayerError(
                f"cutting the network at '{name}': no value has this name",
                code="value-unknown",
                advice=near_misses(name, by_name),
                name=name,
            )
    taps = tuple(by_name[name] for name in names)
    cut.graph.output_node().args = ((*taps, *(output_nodes(cut.graph) if with_output else ())),)
    return prune(cut)


def resolve_layer(program: Program, name: str, blocks: Iterable[BlockNodes] = ()) -> str:
    """The name of the node that computes the output of a layer.

    name: of a block, of a module (`layer2.1.conv1`; for `layer2`, its last value that is used
        outside it), or of a node.

    Raises:
        LayerError: nothing has that name, or the module has several outputs.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    members = {block: set(inside) for block, inside in blocks}
    owned = members.get(name) or {n.name for n in nodes if _is_within(n, name)}
    if not owned:
        if any(node.name == name for node in nodes):
            return name
        known = {*members, *_module_names(nodes), *(node.name for node in nodes)}
        raise LayerError(
            f"looking for layer '{name}': the network has no layer of this name",
            code="layer-unknown",
            advice=near_misses(name, known) or "Run `fitcompress inspect` to list the layers.",
            layer=name,
        )
    results = [node for node in nodes if node.name in owned and _is_used_outside(node, owned)]
    return _only_result(name, results)


def _is_within(node: Node, name: str) -> bool:
    owner = str(node.meta.get("owner", ""))
    return owner == name or owner.startswith(f"{name}.")


def _is_used_outside(node: Node, owned: set[str]) -> bool:
    return any(user.name not in owned for user in node.users)


def _only_result(name: str, results: Sequence[Node]) -> str:
    """The result that is a tensor; the others may only be sizes."""
    tensors = [node for node in results if "sym_size" not in str(node.target)]
    if len(tensors) == 1:
        return tensors[0].name
    found = ", ".join(repr(node.name) for node in tensors) or "none"
    raise LayerError(
        f"looking for layer '{name}': expected one output, got {len(tensors)} ({found})",
        code="layer-ambiguous",
        advice="Name a layer inside it, or one of these outputs.",
        layer=name,
        outputs=[node.name for node in tensors],
    )


def _module_names(nodes: Iterable[Node]) -> set[str]:
    """Every dotted path that owns a node, and every prefix of one."""
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
    """The program without the activation (softmax, log-softmax or sigmoid) that its only output
    ends in, and the activation's name or "". Nothing is modified.

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
