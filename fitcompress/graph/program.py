"""`Program`: a network as a value, made of a flat functional graph of ATen calls and its tensors.

Every kind of teacher is captured as a `Program`, and every transformation takes one. A program has
no modules, files or training state. Node kinds: `placeholder` (an input, batch first), `get_attr`
(the target is the dotted name of a tensor; one node per name), `call_function` (an ATen overload,
`operator.getitem` or arithmetic on sizes) and one `output` with a tuple of nodes.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Interpreter, Node
from torch.fx.node import Target

from fitcompress.errors import CaptureError

__all__ = [
    "ACTIVATIONS",
    "RECURRENT_CALLS",
    "WEIGHT_ARGUMENTS",
    "InputInfo",
    "Program",
    "clone",
    "copy_graph",
    "named_arguments",
    "operation",
    "output_nodes",
    "program_from_json",
    "program_to_json",
    "prune",
    "run_program",
]

aten = torch.ops.aten

ACTIVATIONS = (
    "relu", "relu6", "gelu", "silu", "elu", "celu",
    "selu", "mish", "hardswish", "leaky_relu", "hardtanh", "tanh",
)  # fmt: skip
"""Elementwise operations between layers."""
RECURRENT_CALLS = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
"""Whole recurrent networks, on padded sequences."""
WEIGHT_ARGUMENTS = ("weight", "bias", "running_mean", "running_var")
"""The arguments of layers' operations that take their tensors."""


@dataclass(frozen=True)
class InputInfo:
    """One input of a program."""

    name: str
    shape: tuple[int, ...]
    """Without the batch dimension."""
    dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class Program:
    """A flat graph, its tensors by dotted name, and the names of those that are trained.

    Each node's `meta["owner"]` is the dotted path of the innermost module that made the call, or
    "".
    """

    graph: Graph
    tensors: dict[str, Tensor]
    trainable: frozenset[str]
    inputs: tuple[InputInfo, ...]


def operation(node: Node) -> str:
    """The name of the ATen operation that the node calls ("conv2d"); empty for other nodes."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return ""
    return str(node.target._schema.name).split("::")[1]


def named_arguments(node: Node) -> dict[str, Any]:
    """The arguments of an ATen call by name in the schema's order, defaults filled in."""
    assert isinstance(node.target, OpOverload), node
    defaults = {argument.name: argument.default_value for argument in node.target._schema.arguments}
    return {**defaults, **dict(zip(defaults, node.args, strict=False)), **node.kwargs}


def output_nodes(graph: Graph) -> tuple[Node, ...]:
    """The nodes whose values the graph returns."""
    return tuple(graph.output_node().args[0])  # type: ignore[arg-type]


def copy_graph(graph: Graph) -> tuple[Graph, dict[Node, Node]]:
    """A copy with the same node names, and the mapping from old nodes to new ones."""
    copy, new = Graph(), dict[Node, Node]()
    for node in graph.nodes:
        new[node] = copy.node_copy(node, new.__getitem__)
    return copy, new


def clone(program: Program) -> Program:
    """A copy whose graph and dictionary can be edited freely; the tensors are shared."""
    graph, _ = copy_graph(program.graph)
    return Program(graph, dict(program.tensors), program.trainable, program.inputs)


def prune(program: Program) -> Program:
    """The program without the calls and tensors that no output needs; inputs stay. Edits the graph
    in place.
    """
    graph = program.graph
    needed = set(output_nodes(graph))
    for node in reversed(graph.nodes):
        if node.op in ("output", "placeholder"):
            continue
        if node in needed or _writes(node):
            needed.update(node.all_input_nodes)
        else:
            graph.erase_node(node)
    names = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    tensors = {name: value for name, value in program.tensors.items() if name in names}
    return Program(graph, tensors, program.trainable & names, program.inputs)


def _writes(node: Node) -> bool:
    """Whether the call writes to a tensor in place, as it may before functionalization."""
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def run_program(program: Program, *inputs: Tensor) -> tuple[Tensor, ...]:
    """The outputs for a batch, computed call by call without gradients. Every exactness test uses
    this as its reference.
    """
    with torch.no_grad():
        return tuple(_Runner(program.graph, program.tensors).run(*inputs))


def program_to_json(program: Program) -> dict[str, Any]:
    """The program without the values of its tensors, as a JSON-ready dictionary.

    Raises:
        CaptureError: a call or an argument cannot be stored.
    """
    return {
        "inputs": [
            {"name": info.name, "shape": list(info.shape), "dtype": str(info.dtype).split(".")[-1]}
            for info in program.inputs
        ],
        "trainable": sorted(program.trainable),
        "nodes": [_node_to_json(node) for node in program.graph.nodes],
    }


def program_from_json(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Program:
    """The inverse of `program_to_json`, on the given tensors. Runs no code and resolves only ATen
    calls.

    Raises:
        CaptureError: the dictionary is not a program, it names a call outside ATen, or a tensor is
            missing.
    """
    try:
        graph = _graph_from_json(data["nodes"])
        inputs = tuple(
            InputInfo(item["name"], tuple(map(int, item["shape"])), _dtype_named(item["dtype"]))
            for item in data["inputs"]
        )
        names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        trainable = frozenset(data["trainable"]) & set(names)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CaptureError(
            f"reading a stored graph: it is damaged ({error})",
            code="graph-damaged",
            advice="Copy the model folder again, or save the model again.",
            cause=str(error),
        ) from error
    missing = [name for name in names if name not in tensors]
    if missing:
        raise CaptureError(
            f"reading a stored graph: its tensor '{missing[0]}' is missing",
            code="graph-tensor-missing",
            advice="Copy the model folder again, or save the model again.",
            tensor=missing[0],
        )
    return Program(graph, {name: tensors[name] for name in names}, trainable, inputs)


def _node_to_json(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "op": node.op,
        "target": _target_to_json(node),
        "args": _encode(list(node.args)),
        "kwargs": {key: _encode(value) for key, value in node.kwargs.items()},
        "owner": node.meta.get("owner", ""),
    }


def _graph_from_json(items: list[dict[str, Any]]) -> Graph:
    graph, nodes = Graph(), dict[str, Node]()
    for item in items:
        if item["op"] not in ("placeholder", "get_attr", "call_function", "output"):
            raise ValueError(f"unknown node kind {item['op']!r}")
        target = _target_from_json(item["op"], item["target"])
        args = tuple(_decode(item["args"], nodes))
        kwargs = {str(key): _decode(value, nodes) for key, value in item["kwargs"].items()}
        if item["op"] == "output":
            args = (tuple(args[0]),)
        node = graph.create_node(item["op"], target, args, kwargs, item["name"])
        node.meta["owner"] = str(item["owner"])
        nodes[item["name"]] = node
    if not items or items[-1]["op"] != "output":
        raise ValueError("it has no output")
    return graph


_OPERATORS: dict[str, Any] = {
    function.__name__: function
    for function in (
        operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv,
        operator.truediv, operator.mod, operator.neg, operator.pow, math.floor, math.ceil,
        math.trunc, torch.sym_max, torch.sym_min, torch.sym_int, torch.sym_float,
    )
}  # fmt: skip
"""What a stored graph may call besides ATen: indexing of results and arithmetic on sizes."""


def _target_to_json(node: Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    if isinstance(node.target, OpOverload) and node.target.namespace == "aten":
        return str(node.target)
    for name, function in _OPERATORS.items():
        if node.target is function:
            return name
    raise CaptureError(
        f"storing a graph: expected ATen calls only, got '{node.target}'",
        code="graph-call-unstorable",
        advice="Use a plain PyTorch version of the layer.",
        call=str(node.target),
    )


def _target_from_json(op: str, text: str) -> Any:
    """The callable named `aten.<name>.<overload>`, or by an entry of the fixed table."""
    if op != "call_function":
        return str(text)
    if text in _OPERATORS:
        return _OPERATORS[text]
    namespace, _, rest = text.partition(".")
    name, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    if namespace != "aten" or not overload or not isinstance(found, OpOverload):
        raise ValueError(f"unknown call {text!r}")
    return found


_TORCH_VALUES: dict[str, Any] = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
}


def _encode(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"float": repr(value)}
        case Node():
            return {"node": value.name}
        case list() | tuple():
            return [_encode(item) for item in value]
        case torch.device():
            return None
    for kind, type_ in _TORCH_VALUES.items():
        if isinstance(value, type_):
            return {kind: str(value).removeprefix("torch.")}
    raise CaptureError(
        f"storing a graph: an argument of type '{type(value).__name__}' cannot be stored",
        code="graph-argument-unstorable",
        type=type(value).__name__,
    )


def _decode(value: Any, nodes: Mapping[str, Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return nodes[content]
    if kind == "float":
        return float(content)
    found = getattr(torch, content, None)
    if not isinstance(found, _TORCH_VALUES[kind]):
        raise ValueError(f"unknown {kind} {content!r}")
    return found


def _dtype_named(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return found


class _Runner(Interpreter):
    """Runs a bare graph over a dictionary of tensors."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(torch.nn.Module(), graph=graph)
        self.tensors = tensors

    def get_attr(self, target: Target, args: Any, kwargs: Any) -> Tensor:  # noqa: ARG002 (fx's)
        return self.tensors[str(target)]
