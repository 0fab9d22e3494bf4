"""Runs a network once and records every ATen call that it makes.

Calls are recorded before torch decomposes them, so control flow, inlined functions and flags are
those of normal use. Sizes are recorded as numbers; recordings at two batch sizes tell which of them
depend on the batch. This is the only file that uses private parts of torch's tracer, and the only
one that registers global module hooks: for the duration of a run, to know which module makes a
call.
"""

from __future__ import annotations

import operator
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher, no_python_dispatcher
from torch._ops import OpOverload
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer
from torch.jit._fuser import optimized_execution
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from fitcompress.errors import ObstacleError
from fitcompress.formatting import first_line
from fitcompress.graph.capture.decompositions import DECOMPOSED
from fitcompress.graph.capture.liveness import KeptValues
from fitcompress.graph.capture.normalize import placed_on
from fitcompress.graph.capture.obstacles import (
    foreign_call,
    quantized_call,
    reads_values,
    value_read,
)
from fitcompress.graph.capture.output_names import output_names
from fitcompress.graph.capture.tensor_keys import identity_key, place_key, storage_key
from fitcompress.graph.nests import mapped, tensors_in
from fitcompress.graph.program import InputInfo, Program, prune
from fitcompress.graph.shapes import call_layout

__all__ = ["BatchRefusedError", "Recording", "record"]

aten = torch.ops.aten
_CPU = torch.device("cpu")


class BatchRefusedError(Exception):
    """The network does not run on these inputs, at least not at this batch size."""


@dataclass(frozen=True)
class Recording:
    """A recorded run of a network."""

    program: Program
    """The calls, with sizes as numbers."""
    names: tuple[str, ...]
    """The names of the outputs."""
    examples: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def record(network: nn.Module, examples: Mapping[str, Tensor], what: str) -> Recording:
    """Records a run on `examples`, which have a common batch size.

    On fake examples (`torch._subclasses.FakeTensor`) only shapes are computed: values that depend
    on them are fake, and the network's own tensors are not written to. Other values are real.

    examples: the inputs by name.
    what: how errors refer to the network.

    Raises:
        BatchRefusedError: the network does not run on them.
        ObstacleError: it makes a call that a graph cannot contain.
    """
    given = tuple(value.clone() for value in examples.values())  # the run may write to them
    parameters = {name for name, _ in network.named_parameters()}
    named = _named_tensors(network)
    own = {storage_key(value) for _, value in named}
    recorder = _Recorder(examples, {identity_key(v): name for name, v in reversed(named)}, own)
    try:
        with (
            torch.no_grad(),
            warnings.catch_warnings(),
            optimized_execution(False),
            recorder.following(network),
            enable_python_dispatcher(),
            recorder,
        ):
            warnings.simplefilter("ignore")
            result = network(*examples.values())
    except Exception as error:
        if recorder.obstacle:
            explain, call = recorder.obstacle
            raise explain(what, call, _source_line(error)) from error
        raise BatchRefusedError(recorder.failure or _last_line(error)) from error
    outputs = [value for value in tensors_in(result) if isinstance(value, Tensor)]
    program = recorder.finish(outputs, parameters)
    return Recording(program, output_names(result), given, tuple(outputs))


class _Recorder(ProxyTorchDispatchMode):
    """Records every call as a graph node.

    Torch (2.11 to 2.15) allows only its own dispatch modes above autograd, hence the base class;
    none of its tracing is used.
    """

    def __init__(
        self, examples: Mapping[str, Tensor], names: Mapping[Any, str], own: Collection[int]
    ) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=True)
        self.graph = Graph()
        self.tensors: dict[str, Tensor] = {}
        self._names = names
        self._nodes: dict[Any, Node] = {}
        """By the tensor's id and by its place in memory: Python may pass another object for a
        tensor."""
        self._constants: dict[str, Node] = {}
        self._kept = KeptValues(own, self._forget)
        self._from_inputs: set[int] = set()
        self._blank: set[int] = set()
        """Storages that no recorded call has written to yet."""
        fakes = [value for value in examples.values() if isinstance(value, FakeTensor)]
        self._compute = _Shapes(fakes[0].fake_mode, own).compute if fakes else _call
        self._owner = ""
        self.inputs: tuple[InputInfo, ...] = ()
        self.obstacle: tuple[Callable[..., ObstacleError], OpOverload] | None = None
        """The error to raise after the run, and its call: the TorchScript interpreter turns every
        exception into a RuntimeError without its message."""
        self.failure = ""
        """The message of the last call that failed."""
        for name, example in examples.items():
            node = self.graph.placeholder(name)
            node.meta.update(val=_example(example), owner="", memory=storage_key(example))
            self.inputs += (InputInfo(node.name, tuple(example.shape[1:]), example.dtype),)
            self._remember(example, node)
            self._from_inputs.add(storage_key(example))

    @contextmanager
    def following(self, network: nn.Module) -> Iterator[None]:
        """Tracks the innermost running module, which becomes the owner of each call."""
        names = {module: name for name, module in network.named_modules()}
        callers: list[str] = []

        def enter(module: nn.Module, _: Any) -> None:
            callers.append(self._owner)
            self._owner = names.get(module, self._owner)

        def leave(*_: Any) -> None:
            self._owner = callers.pop()

        handles = (
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.detach_.default:  # changes gradients only, not values
            return args[0]
        if func in DECOMPOSED:
            with self:
                return DECOMPOSED[func](*args, **kwargs)
        self._refuse(func, args, kwargs)
        if func._schema.is_mutable:  # record literals with their values before the write
            mapped((list(args), kwargs), self._node_of)
        try:
            _refuse_other_states(func, args)
            result = self._compute(func, args, kwargs)
        except Exception as error:
            self.failure = first_line(error)
            raise
        if not func._schema.is_mutable:
            given = {id(value) for value in tensors_in((args, kwargs))}
            result = mapped(result, lambda v: aten.alias(v) if id(v) in given else v)
        if func.namespace == "aten":
            self._write(func, args, kwargs, result)
        return result

    def _refuse(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Raise if a graph cannot contain the call."""
        given = list(tensors_in((args, kwargs)))
        follows = any(storage_key(value) in self._from_inputs for value in given)
        if func.namespace == "quantized" or func._schema.name.startswith(_QUANTIZING):
            self.obstacle = quantized_call, func
        elif func.namespace != "aten" and given:
            self.obstacle = foreign_call, func
        elif follows and reads_values(func, args, kwargs):
            self.obstacle = value_read, func
        if self.obstacle:
            raise AssertionError("never seen: `record` raises the obstacle instead")

    def finish(self, outputs: list[Tensor], parameters: set[str]) -> Program:
        self.graph.output(tuple(self._node_of(value) for value in outputs))
        trainable = frozenset(parameters.intersection(self.tensors))
        return prune(Program(self.graph, self.tensors, trainable, self.inputs))

    def _write(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        given = list(tensors_in((args, kwargs)))
        if any(storage_key(value) in self._from_inputs for value in given):
            written = given[:1] if func._schema.is_mutable else []
            self._from_inputs.update(map(storage_key, [*tensors_in(result), *written]))
        self._keep_written_by_others(func, given, result)
        args, kwargs = placed_on(_CPU, func, tuple(args), kwargs)
        args, kwargs = mapped((args, kwargs), self._node_of)
        node = self.graph.create_node("call_function", func, args, kwargs)
        node.meta.update(val=mapped(result, _example), owner=self._owner)
        node.meta.update(memory=next(map(storage_key, tensors_in(result)), None))
        if isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                part = self.graph.call_function(operator.getitem, (node, index))
                part.meta.update(val=mapped(item, _example), owner=self._owner)
                part.meta.update(memory=next(map(storage_key, tensors_in(item)), None))
                self._remember(item, part)
        else:
            self._remember(result, node)

    def _keep_written_by_others(self, func: OpOverload, given: list[Tensor], result: Any) -> None:
        """Make a literal of a tensor that is read although no call has written to it: the
        interpreter fills tensors made from lists without a call.
        """
        if func is aten.empty.memory_format:
            self._blank.add(storage_key(result))
        elif func._schema.is_mutable:
            self._blank.difference_update(map(storage_key, given))
        elif not self._blank.issuperset(map(storage_key, tensors_in(result))):
            for value in given:  # they are read: the result is not just a view
                known = self._known(value)
                if storage_key(value) in self._blank and known and known.op != "get_attr":
                    self._forget(value)

    def _known(self, value: Tensor) -> Node | None:
        return self._nodes.get(id(value)) or self._nodes.get(place_key(value))

    def _remember(self, value: Any, node: Node) -> None:
        self._kept.add(value)
        if isinstance(value, Tensor):
            self._nodes[id(value)] = self._nodes[place_key(value)] = node

    def _forget(self, value: Tensor) -> None:
        self._nodes.pop(id(value), None)
        self._nodes.pop(place_key(value), None)

    def _node_of(self, value: Any) -> Any:
        """The node of a tensor, a new one if the tensor was not made by a recorded call."""
        if not isinstance(value, Tensor):
            return value
        known = self._known(value)
        if known is None:
            name = self._names.get(identity_key(value), f"{_LITERAL}{len(self.tensors)}")
            known = self._constant(name, value)
            self._remember(value, known)
        return known

    def _constant(self, name: str, value: Tensor) -> Node:
        if name not in self._constants:
            node = self.graph.create_node("get_attr", name)
            is_literal = name.startswith(_LITERAL)
            owner = "" if is_literal else name.rpartition(".")[0]
            node.meta.update(val=_example(value), owner=owner, is_literal=is_literal)
            node.meta.update(memory=storage_key(value))
            kept = value.detach().contiguous()  # cloned if literal: the run may write to it
            self.tensors[name] = kept.clone() if is_literal else kept
            self._constants[name] = node
        return self._constants[name]


_LITERAL = "literal_"
_QUANTIZING = ("aten::quantize_", "aten::dequantize")


def _refuse_other_states(func: OpOverload, args: Sequence[Any]) -> None:
    """Raise if the states of an LSTM have another batch size than its input.

    Works around a bug of torch 2.11 to 2.15 on CPUs with oneDNN: `aten::lstm` does not compare the
    two, writes out of bounds and aborts the process ("double free or corruption"). Without oneDNN
    it raises a RuntimeError. See pytorch/pytorch#173946 and #195547. Remove this once
    `torch.ops.aten.lstm.input` raises with oneDNN in all supported versions of torch.
    """
    if func is aten.lstm.input:
        states, expected = args[1], args[0].shape[0 if args[8] else 1]
        if any(state.shape[1] != expected for state in states):
            raise ValueError(f"an LSTM has states for a batch of {states[0].shape[1]}")


class _Shapes:
    """Computes calls that take a fake tensor on fake tensors, and others on values. In the former,
    a tensor with values or on the meta device is replaced by a fake twin.
    """

    def __init__(self, mode: FakeTensorMode, own: Collection[int]) -> None:
        self._mode, self._own = mode, own
        self._twins: dict[int, Tensor] = {}
        self._originals: dict[int, Tensor] = {}
        self._cache: dict[Any, Any] = {}
        """A cache of results that share no memory with the arguments, since blocks repeat."""

    def compute(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        given = list(tensors_in((args, kwargs)))
        is_bare = any(value.is_meta or isinstance(value, FakeTensor) for value in given)
        is_bare |= func._schema.is_mutable and storage_key(given[0]) in self._own
        if is_bare:
            args, kwargs = mapped((list(args), kwargs), self._twin)
        args, kwargs = placed_on(_CPU, func, tuple(args), kwargs)
        key = (func, call_layout(args), call_layout(kwargs)) if is_bare else None
        if key is not None and key in self._cache:
            return mapped(self._cache[key], self._blank)
        with no_python_dispatcher():  # the C++ kernels are many times faster
            result = func(*args, **kwargs)
        taken = set(map(storage_key, tensors_in((args, kwargs))))
        if key is not None and taken.isdisjoint(map(storage_key, tensors_in(result))):
            self._cache[key] = mapped(result, _example)
        return mapped(result, lambda value: self._originals.get(id(value), value))

    def _blank(self, value: Any) -> Any:
        """A fake tensor like `value`, with memory of its own."""
        if not isinstance(value, Tensor):
            return value
        return FakeTensor(self._mode, _example(value), _CPU)

    def _twin(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, FakeTensor):
            return value
        if id(value) not in self._twins:
            twin = self._blank(value)
            self._twins[id(value)], self._originals[id(twin)] = twin, value
        return self._twins[id(value)]


def _call(func: OpOverload, args: Any, kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _named_tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """The network's parameters, buffers and other tensors by their original names."""
    return [*network.named_parameters(), *network.named_buffers(), *_loose_tensors(network)]


def _loose_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors in plain attributes, and in attributes that are lists or dictionaries."""
    for path, module in network.named_modules():
        for name, held in vars(module).items():
            full = f"{path}.{name}".lstrip(".")
            if isinstance(held, Tensor):
                yield full, held
            elif not name.startswith("_") and isinstance(held, (list, tuple, dict)):
                for place, value in enumerate(tensors_in(held)):
                    yield f"{full}_{place}", value


def _example(value: Any) -> Any:
    """The tensor on the meta device; other values unchanged."""
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _last_line(error: Exception) -> str:
    """The last line of an error of the TorchScript interpreter, which starts with a traceback."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _source_line(error: Exception) -> str:
    """The line of the network's code that raised an error."""
    lines = str(error).splitlines()
    marked = [i for i, line in enumerate(lines) if line.rstrip().endswith("<--- HERE")]
    if marked and marked[-1]:
        return lines[marked[-1] - 1].strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_NOT_THE_NETWORK)]
    return own[-1].line or "" if own else ""


_NOT_THE_NETWORK = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
