"""Captures a `torch.export.ExportedProgram` as a `Program`."""

from __future__ import annotations

import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from fitcompress.errors import CaptureError
from fitcompress.graph.capture.dynamic_batch import make_batch_dynamic
from fitcompress.graph.capture.functionalize import MutatedViewError
from fitcompress.graph.capture.normalize import normalize
from fitcompress.graph.capture.obstacles import foreign_call, reads_values, value_read
from fitcompress.graph.capture.tensor_keys import identity_key
from fitcompress.graph.names import plain_name, tidy_names
from fitcompress.graph.nests import mapped
from fitcompress.graph.program import InputInfo, Program, run_program

__all__ = ["capture_exported"]

_WEIGHT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


def capture_exported(exported: ExportedProgram) -> Program:
    """The program of an exported program, which is not modified; the tensors are shared.

    Raises:
        CaptureError: it is not a pure function of its inputs, or contains calls outside ATen.
    """
    try:
        program = normalize(_flatten(exported))
    except MutatedViewError as error:
        program = _functionalized(exported, error)
    program = tidy_names(program)
    _refuse_foreign_calls(program.graph)
    batch_size = _fixed_batch_size(exported)
    return program if batch_size is None else make_batch_dynamic(program, batch_size)


def _functionalized(exported: ExportedProgram, reason: MutatedViewError) -> Program:
    """The program after torch's own functionalization, verified against the exported program.
    Before torch 2.12, functionalization missed that dropout returns its input in eval mode.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch 2.11 warns of its own use of an old name
        program = normalize(_flatten(exported.run_decompositions({})))
        inputs = exported.example_inputs[0] if exported.example_inputs else ()
        if not inputs or any(value.is_meta for value in (*inputs, *program.tensors.values())):
            return program
        expected = exported.module()(*(value.clone() for value in inputs))
        found = run_program(program, *inputs)
    pairs = zip(found, tree_leaves(expected), strict=True)
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs):
        raise CaptureError(
            f"capturing the network: {reason}, and torch cannot functionalize it",
            code="view-write-unsupported",
            advice="Use a version of the model without this in-place operation.",
            cause=str(reason),
        ) from reason
    return program


def _fixed_batch_size(exported: ExportedProgram) -> int | None:
    """The batch size, if it was exported as a number."""
    for node, spec in zip(exported.graph.nodes, exported.graph_signature.input_specs, strict=False):
        value = node.meta.get("val")
        if spec.kind == InputKind.USER_INPUT and isinstance(value, Tensor) and value.ndim > 0:
            return value.shape[0] if isinstance(value.shape[0], int) else None
    return None


def _flatten(exported: ExportedProgram) -> Program:
    """The exported graph, not yet normalized, with weights as get_attr nodes and nested regions
    inlined.
    """
    signature, tensors = exported.graph_signature, _tensors(exported)
    names = _canonical_names(tensors)
    builder = _Builder()
    outputs = builder.inline(exported.graph_module, _arguments(exported, builder, names))
    kinds = [spec.kind for spec in signature.output_specs]
    kept = [v for kind, v in zip(kinds, outputs, strict=True) if kind == OutputKind.USER_OUTPUT]
    builder.graph.output(tuple(builder.resolve(v) for v in kept if isinstance(v, (Node, _Weight))))
    used = [str(node.target) for node in builder.graph.nodes if node.op == "get_attr"]
    parameters = {names[name] for name in signature.parameters if name in names}
    return Program(
        builder.graph,
        {name: tensors[name].detach() for name in used},
        frozenset(parameters.intersection(used)),
        tuple(builder.inputs),
    )


def _tensors(exported: ExportedProgram) -> dict[str, Tensor]:
    """Parameters, buffers and constants by name."""
    values = {**exported.state_dict, **exported.constants}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _canonical_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """For each name, the first name of the same tensor, so that tied weights have one name."""
    first: dict[Any, str] = {}
    return {name: first.setdefault(identity_key(value), name) for name, value in tensors.items()}


def _arguments(exported: ExportedProgram, builder: _Builder, names: Mapping[str, str]) -> list[Any]:
    """The value in the new graph of each placeholder of the exported one."""
    placeholders = [node for node in exported.graph.nodes if node.op == "placeholder"]
    values: list[Any] = []
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind in _WEIGHT_KINDS:
            assert spec.target is not None
            is_literal = spec.target.startswith("lifted_tensor_")
            values.append(_Weight(names[spec.target], is_literal, node.meta.get("val")))
        elif spec.kind == InputKind.USER_INPUT and isinstance(node.meta.get("val"), Tensor):
            values.append(builder.add_input(node))
        elif spec.kind == InputKind.USER_INPUT:
            values.append(getattr(spec.arg, "value", None))
        else:
            raise CaptureError(
                f"capturing the network: expected tensors as inputs, got '{node}' ({spec.kind})",
                code="input-not-a-tensor",
                input=str(node),
            )
    return values


@dataclass(frozen=True)
class _Weight:
    """A tensor without a node; it gets one before its first use."""

    name: str
    is_literal: bool
    example: Any


class _Builder:
    """Builds the new graph."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.inputs: list[InputInfo] = []
        self._weights: dict[str, Node] = {}

    def add_input(self, source: Node) -> Node:
        value: Tensor = source.meta["val"]
        node = self.graph.placeholder(source.name)
        node.meta.update(val=value, owner="")
        shape = tuple(int(size) for size in value.shape[1:])
        self.inputs.append(InputInfo(node.name, shape, value.dtype))
        return node

    def resolve(self, value: Any) -> Any:
        """The node of a weight; any other value unchanged."""
        if not isinstance(value, _Weight):
            return value
        if value.name not in self._weights:
            node = self.graph.create_node("get_attr", value.name)
            owner = "" if value.is_literal else value.name.rpartition(".")[0]
            node.meta.update(val=value.example, owner=owner, is_literal=value.is_literal)
            self._weights[value.name] = node
        return self._weights[value.name]

    def inline(self, source: GraphModule, arguments: Sequence[Any]) -> tuple[Any, ...]:
        """Copies the calls of `source` to the new graph and returns the outputs there."""
        values: dict[Node, Any] = {}
        remaining = iter(arguments)
        for node in source.graph.nodes:
            match node.op:
                case "placeholder":
                    values[node] = next(remaining)
                case "get_attr":
                    values[node] = operator.attrgetter(str(node.target))(source)
                case "call_function":
                    values[node] = self._call(node, values)
                case "output":
                    return tuple(_mapped(node.args[0], values))
        raise AssertionError("a graph without an output")

    def _call(self, node: Node, values: Mapping[Node, Any]) -> Any:
        args, kwargs = _mapped((tuple(node.args), dict(node.kwargs)), values)
        if node.target is operator.getitem and isinstance(args[0], tuple):
            return args[0][args[1]]
        if isinstance(node.target, HigherOrderOperator):
            return self._inline_region(node, args)
        if isinstance(node.target, OpOverload) and not node.target._schema.returns:
            return None
        args, kwargs = mapped((args, kwargs), self.resolve)
        call = self.graph.create_node("call_function", node.target, args, kwargs, plain_name(node))
        call.meta.update(val=node.meta.get("val"), owner=_owner(node))
        return call

    def _inline_region(self, node: Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Inlines the calls of a region that only switches gradients or autocast off."""
        name = str(node.target)
        position = next((i for i, arg in enumerate(args) if isinstance(arg, GraphModule)), None)
        switches_autocast_on = "autocast" in name and len(args) > 2 and args[2] is not False
        if position is None or name not in _REGIONS or switches_autocast_on:
            raise CaptureError(
                f"capturing the network: the operator '{name}' is not supported",
                code="control-flow-unsupported",
                advice="Use a version of the model that runs the same operations for every input.",
                operator=name,
            )
        return self.inline(args[position], args[position + 1 :])


_REGIONS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")


_NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""The name that torch.export (2.11 to 2.15) gives to a call outside all modules."""


def _mapped(value: Any, values: Mapping[Node, Any]) -> Any:
    return mapped(value, lambda item: values[item] if isinstance(item, Node) else item)


def _owner(node: Node) -> str:
    """The dotted path of the innermost module that made the call, the same for repeated calls."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    if path == _NO_MODULE:
        return ""
    return re.sub(r"@\d+", "", path)


def _refuse_foreign_calls(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.target, OpOverload) and node.target.namespace != "aten":
            raise foreign_call("the network", node.target)
        if isinstance(node.target, OpOverload) and reads_values(
            node.target, node.args, node.kwargs
        ):
            raise value_read("the network", node.target)
