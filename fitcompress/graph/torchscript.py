"""Turns a TorchScript archive into a `Program`. Layer: graph. The one file that touches private
parts of torch's tracer.

The archive runs, and each ATen call that its own interpreter makes is recorded before torch takes
it apart. So control flow, inlined functions and flags are what they are when the archive is used,
and the result is exact. Sizes come out as numbers; recording at two batch sizes tells which of them
follow the batch.
"""

from __future__ import annotations

import copy
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer
from torch.jit._fuser import optimized_execution

from fitcompress.errors import CaptureError, ObstacleError, TeacherError
from fitcompress.graph.batch import agree, make_batch_dynamic, merge_recordings
from fitcompress.graph.capture import capture_module, evaluating, tidied
from fitcompress.graph.devices import without_devices
from fitcompress.graph.examples import random_input
from fitcompress.graph.fused import DECOMPOSED
from fitcompress.graph.lift import place
from fitcompress.graph.nests import mapped, tensors_in
from fitcompress.graph.normalise import MutatedViewError, normalise
from fitcompress.graph.obstacles import foreign_call, quantized_call, reads_values, value_read
from fitcompress.graph.outputs import output_names
from fitcompress.graph.owners import infer_owners, name_by_use
from fitcompress.graph.program import InputInfo, Program, copy_graph, prune, run_program

__all__ = ["capture_named_torchscript", "capture_torchscript", "load_torchscript"]

aten = torch.ops.aten


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """The archive on the CPU, wherever it was saved.

    Raises:
        TeacherError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(without_devices(path), map_location="cpu")  # type: ignore[no-any-return]
    except Exception as error:
        raise TeacherError(
            f"opening '{path}': torch {torch.__version__} cannot read this TorchScript archive:"
            f" {_first_line(error)}",
            advice="Copy it again, or save it again with this version of torch.",
        ) from error


def capture_torchscript(archive: nn.Module, *inputs: tuple[int, ...] | InputInfo) -> Program:
    """The flat program of an archive, its batch size dynamic.

    inputs: what it takes, without the batch; a bare shape is one of float32.

    Raises:
        CaptureError: it does not run on such inputs, keeps state, or its batch size cannot be
            freed.
    """
    return capture_named_torchscript(archive, *inputs)[0]


def capture_named_torchscript(
    archive: nn.Module, *inputs: tuple[int, ...] | InputInfo
) -> tuple[Program, tuple[str, ...]]:
    """The same as `capture_torchscript`, and the names of the outputs."""
    infos = [InputInfo("", item) if isinstance(item, tuple) else item for item in inputs]
    with evaluating(archive):
        try:
            two, three = (_record(archive, infos, size) for size in (2, 3))
        except _BatchRefusedError as error:
            return _capture_fixed_batch(archive, infos, error)
        program = _finished(merge_recordings(two.program, three.program))
        return _checked(_named(program), three), two.names


def _capture_fixed_batch(
    archive: nn.Module, infos: Sequence[InputInfo], cause: Exception
) -> tuple[Program, tuple[str, ...]]:
    """An archive whose views hold the batch size it was traced with."""
    for batch_size in (1, 2, 4, 8, 16, 32, 64):
        try:
            recording = _record(archive, infos, batch_size)
        except _BatchRefusedError:
            continue
        program = make_batch_dynamic(_finished(recording.program), batch_size)
        return _checked(_named(program), recording), recording.names
    said = " and ".join(f"{info.shape} {str(info.dtype).split('.')[-1]}" for info in infos)
    raise CaptureError(f"running the archive on inputs of {said}: {cause}") from cause


def _checked(program: Program, recording: _Recording) -> Program:
    """The program, which must give what the archive gave when it was recorded."""
    with _same_draws():
        found = run_program(program, *recording.examples)
    if not all(map(agree, found, recording.outputs)):
        raise CaptureError(
            "capturing the archive: the graph of its calls does not give its outputs",
            advice="Export the model that it was made from as a .pt2 instead.",
        )
    return program


def _finished(recording: Program) -> Program:
    try:
        program = normalise(replace(recording, graph=copy_graph(recording.graph)[0]))
    except MutatedViewError:
        program = _functional_by_export(recording)
    return tidied(program)


def _named(program: Program) -> Program:
    return infer_owners(name_by_use(program))


def _functional_by_export(recording: Program) -> Program:
    """In-place calls on views, undone by torch.export's own functionalisation."""
    root, graph = nn.Module(), copy_graph(recording.graph)[0]
    for name, value in recording.tensors.items():
        place(root, name, value.detach())
    inputs = [
        torch.zeros_like(node.meta["val"], device="cpu")
        for node in graph.nodes
        if node.op == "placeholder"
    ]
    program = capture_module(GraphModule(root, graph), inputs)
    return replace(program, trainable=recording.trainable.intersection(program.tensors))


# --- recording ------------------------------------------------------------------------------


class _BatchRefusedError(Exception):
    """The archive does not run at this batch size."""


@dataclass(frozen=True)
class _Recording:
    """One run of an archive."""

    program: Program
    """Its calls, sizes as numbers."""
    names: tuple[str, ...]
    """Of the outputs."""
    examples: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@contextmanager
def _same_draws() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _record(archive: nn.Module, infos: Sequence[InputInfo], batch_size: int) -> _Recording:
    """A run on random inputs."""
    generator = torch.Generator().manual_seed(0)
    examples = [random_input(info, batch_size, generator) for info in infos]
    given = tuple(example.clone() for example in examples)  # the run may write to its inputs
    names = [info.name for info in infos if info.name] or _argument_names(archive)
    if _writes_to_itself(archive):  # what it keeps of a run must not show in the next one
        archive = copy.deepcopy(archive)
    recorder = _Recorder(dict(zip(names, examples, strict=False)), _named_tensors(archive))
    try:
        with torch.no_grad(), warnings.catch_warnings(), optimized_execution(False):
            warnings.simplefilter("ignore")
            with _same_draws(), enable_python_dispatcher(), recorder:
                result = archive(*examples)
    except Exception as error:
        if recorder.obstacle:
            explain, call = recorder.obstacle
            raise explain("the archive", call, _source_line(error)) from error
        raise _BatchRefusedError(recorder.failure or _last_line(error)) from error
    outputs = [value for value in tensors_in(result) if isinstance(value, Tensor)]
    if any(value.ndim == 0 or value.shape[0] != batch_size for value in outputs):
        raise _BatchRefusedError(
            f"its output does not have one row a sample for {batch_size} samples"
        )
    program = recorder.finish(outputs, {name for name, _ in archive.named_parameters()})
    return _Recording(program, output_names(result), given, tuple(outputs))


def _writes_to_itself(archive: nn.Module) -> bool:
    graph = archive.inlined_graph
    return any(graph.findAllNodes(kind) for kind in ("prim::SetAttr", "aten::_set_item"))  # type: ignore[operator, union-attr]


def _argument_names(archive: nn.Module) -> list[str]:
    """What the archive calls its inputs."""
    arguments = archive.forward.schema.arguments[1:]  # type: ignore[attr-defined]
    return [re.sub(r"\W", "_", argument.name) for argument in arguments]


class _Recorder(ProxyTorchDispatchMode):
    """Writes down every call as a graph node while real tensors flow through.

    A dispatch mode above autograd must be one of torch's own (2.11 to 2.15), hence the base class;
    none of its tracing is used.
    """

    def __init__(self, examples: Mapping[str, Tensor], names: Mapping[Any, str]) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=True)
        self.graph = Graph()
        self.tensors: dict[str, Tensor] = {}
        self._names = names
        self._nodes: dict[int, Node] = {}
        self._constants: dict[str, Node] = {}
        self._alive: list[Any] = []
        self._from_inputs: set[int] = set()
        self._blank: set[int] = set()
        """Memory that no recorded call has written yet."""
        self.inputs: tuple[InputInfo, ...] = ()
        self.obstacle: tuple[Callable[..., ObstacleError], OpOverload] | None = None
        """The error to raise and its call. It cannot be raised where it is found: the interpreter
        makes a RuntimeError without words of all that passes it."""
        self.failure = ""
        """What the last call said that failed."""
        for name, example in examples.items():
            node = self.graph.placeholder(name)
            node.meta.update(val=_example(example), owner="")
            self.inputs += (InputInfo(node.name, tuple(example.shape[1:]), example.dtype),)
            self._remember(example, node)
            self._from_inputs.add(_storage(example))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DECOMPOSED:
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        self._refuse(func, (args, kwargs))
        try:
            _refuse_other_states(func, args)
            result = func(*args, **kwargs)
        except Exception as error:
            self.failure = _first_line(error)
            raise
        if not func._schema.is_mutable:
            given = {id(value) for value in tensors_in((args, kwargs))}
            result = mapped(result, lambda v: aten.alias(v) if id(v) in given else v)
        if func.namespace == "aten":
            self._write(func, args, kwargs, result)
        return result

    def _refuse(self, func: OpOverload, arguments: Any) -> None:
        """Stops at a call that no graph can hold."""
        given = list(tensors_in(arguments))
        follows = any(_storage(value) in self._from_inputs for value in given)
        if func.namespace == "quantized" or func._schema.name.startswith(_QUANTIZING):
            self.obstacle = quantized_call, func
        elif func.namespace != "aten" and given:
            self.obstacle = foreign_call, func
        elif follows and reads_values(func, given):
            self.obstacle = value_read, func
        if self.obstacle:
            raise AssertionError("never seen: the interpreter makes its own error of it")

    def finish(self, outputs: list[Tensor], parameters: set[str]) -> Program:
        self.graph.output(tuple(self._node_of(value) for value in outputs))
        trainable = frozenset(parameters.intersection(self.tensors))
        return prune(Program(self.graph, self.tensors, trainable, self.inputs))

    def _write(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        given = list(tensors_in((args, kwargs)))
        if any(_storage(value) in self._from_inputs for value in given):
            self._from_inputs.update(map(_storage, tensors_in(result)))
        self._keep_written_by_others(func, given, result)
        args, kwargs = mapped((list(args), kwargs), self._node_of)
        node = self.graph.create_node("call_function", func, tuple(args), kwargs)
        node.meta.update(val=mapped(result, _example), owner="")
        if isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                part = self.graph.call_function(operator.getitem, (node, index))
                part.meta.update(val=mapped(item, _example), owner="")
                self._remember(item, part)
        else:
            self._remember(result, node)

    def _keep_written_by_others(self, func: OpOverload, given: list[Tensor], result: Any) -> None:
        """Makes a literal of what is read from memory that no call has written: the interpreter
        fills tensors that it makes of lists by itself.
        """
        if func is aten.empty.memory_format:
            self._blank.add(_storage(result))
        elif func._schema.is_mutable:
            self._blank.difference_update(map(_storage, given))
        elif not self._blank.issuperset(map(_storage, tensors_in(result))):
            for value in given:  # it is read: the result is no mere view of it
                if _storage(value) in self._blank and not self._is_constant(value):
                    self._nodes.pop(id(value), None)

    def _is_constant(self, value: Tensor) -> bool:
        return id(value) in self._nodes and self._nodes[id(value)].op == "get_attr"

    def _remember(self, value: Any, node: Node) -> None:
        self._alive.append(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = node

    def _node_of(self, value: Any) -> Any:
        """The node that made a tensor, or a new one for a tensor that was there before."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._nodes:
            literal = f"{_LITERAL}{len(self.tensors)}"
            self._remember(value, self._constant(self._names.get(_identity(value), literal), value))
        return self._nodes[id(value)]

    def _constant(self, name: str, value: Tensor) -> Node:
        if name not in self._constants:
            node = self.graph.create_node("get_attr", name)
            is_literal = name.startswith(_LITERAL)
            owner = "" if is_literal else name.rpartition(".")[0]
            node.meta.update(val=_example(value), owner=owner, is_literal=is_literal)
            self.tensors[name], self._constants[name] = value.detach().contiguous(), node
        return self._constants[name]


_LITERAL = "literal_"


_QUANTIZING = ("aten::quantize_", "aten::dequantize")


def _refuse_other_states(func: OpOverload, args: Sequence[Any]) -> None:
    """torch's LSTM on the CPU (2.11 to 2.15) does not hold the batch of its states against that of
    its input, and writes past their end.
    """
    if func is aten.lstm.input:
        states, expected = args[1], args[0].shape[0 if args[8] else 1]
        if any(state.shape[1] != expected for state in states):
            raise ValueError(f"an LSTM has states for a batch of {states[0].shape[1]}")


def _storage(value: Tensor) -> int:
    """Which memory a tensor is seen through: views of one share it."""
    return int(value.untyped_storage()._cdata)


def _named_tensors(archive: nn.Module) -> dict[Any, str]:
    """The author's names of an archive's parameters, buffers and other tensors, by where they lie
    in memory.
    """
    named = [*archive.named_parameters(), *archive.named_buffers()]
    return {_identity(value): name for name, value in reversed(named)}


def _identity(value: Tensor) -> Any:
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype


def _example(value: Any) -> Any:
    """Shape and dtype of a tensor without its memory."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def _last_line(error: Exception) -> str:
    """The cause in an error of the TorchScript interpreter, which puts its own traceback first."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _source_line(error: Exception) -> str:
    """Where in the code of the archive's author an error of the interpreter arose."""
    lines = str(error).splitlines()
    marked = [i for i, line in enumerate(lines) if line.rstrip().endswith("<--- HERE")]
    return lines[marked[-1] - 1].strip() if marked and marked[-1] else ""


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
