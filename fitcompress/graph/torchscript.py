"""Turns a TorchScript archive into a `Program`. Layer: graph. The one file that touches private
parts of torch's tracer.

The archive runs, and each ATen call that its own interpreter makes is recorded before torch takes
it apart. So control flow, inlined functions and flags are what they are when the archive is used,
and the result is exact. Sizes come out as numbers; recording at two batch sizes tells which of them
follow the batch.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer
from torch.jit._fuser import optimized_execution

from fitcompress.errors import CaptureError, TeacherError
from fitcompress.graph.batch import make_batch_dynamic, merge_recordings
from fitcompress.graph.capture import capture_module, evaluating, tidied
from fitcompress.graph.lift import place
from fitcompress.graph.normalise import MutatedViewError, normalise
from fitcompress.graph.owners import infer_owners, name_by_use
from fitcompress.graph.program import InputInfo, Program, copy_graph, prune

__all__ = ["capture_torchscript", "load_torchscript"]

aten = torch.ops.aten


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """The archive on the CPU.

    Raises:
        TeacherError: torch cannot read it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-any-return]
    except Exception as error:
        raise TeacherError(
            f"opening '{path}': torch {torch.__version__} cannot read this TorchScript archive:"
            f" {_first_line(error)}",
            advice="Copy it again, or save it again with this version of torch.",
        ) from error


def capture_torchscript(archive: nn.Module, input_shape: tuple[int, ...]) -> Program:
    """The flat program of an archive for inputs of one shape (without the batch), its batch size
    dynamic.

    Raises:
        CaptureError: it does not run on such inputs, keeps state, or its batch size cannot be
            freed.
    """
    with evaluating(archive):
        try:
            recordings = [_record(archive, input_shape, size) for size in (2, 3)]
        except _BatchRefusedError as error:
            return _capture_fixed_batch(archive, input_shape, error)
        return infer_owners(_finished(merge_recordings(*recordings)))


def _capture_fixed_batch(
    archive: nn.Module, input_shape: tuple[int, ...], cause: Exception
) -> Program:
    """An archive whose views hold the batch size it was traced with."""
    for batch_size in (1, 4, 8, 16, 32, 64):
        try:
            recording = _record(archive, input_shape, batch_size)
        except _BatchRefusedError:
            continue
        return infer_owners(make_batch_dynamic(_finished(recording), batch_size))
    raise CaptureError(
        f"running the archive on images of {input_shape}: {cause}",
        advice="Pass --input-size C H W as the archive expects it.",
    ) from cause


def _finished(recording: Program) -> Program:
    try:
        program = normalise(replace(recording, graph=copy_graph(recording.graph)[0]))
    except MutatedViewError:
        program = _functional_by_export(recording)
    return name_by_use(tidied(program))


def _functional_by_export(recording: Program) -> Program:
    """In-place calls on views, undone by torch.export's own functionalisation."""
    root, graph = nn.Module(), copy_graph(recording.graph)[0]
    for name, value in recording.tensors.items():
        place(root, name, value.detach())
    inputs = [torch.zeros(_example_shape(node)) for node in graph.nodes if node.op == "placeholder"]
    program = capture_module(GraphModule(root, graph), inputs)
    return replace(program, trainable=recording.trainable.intersection(program.tensors))


def _example_shape(node: Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


# --- recording ------------------------------------------------------------------------------


class _BatchRefusedError(Exception):
    """The archive does not run at this batch size."""


def _record(archive: nn.Module, input_shape: tuple[int, ...], batch_size: int) -> Program:
    """The calls of one run on random images, sizes as numbers."""
    generator = torch.Generator().manual_seed(0)
    example = torch.randn((batch_size, *input_shape), generator=generator)
    recorder = _Recorder(example, _named_tensors(archive))
    try:
        with torch.no_grad(), warnings.catch_warnings(), optimized_execution(False):
            warnings.simplefilter("ignore")
            with enable_python_dispatcher(), recorder:
                result = archive(example)
    except CaptureError:
        raise
    except Exception as error:
        raise _BatchRefusedError(_last_line(error)) from error
    outputs = [value for value in _tensors_in(result) if isinstance(value, Tensor)]
    if any(value.ndim == 0 or value.shape[0] != batch_size for value in outputs):
        raise _BatchRefusedError(
            f"its output does not have one row an image for {batch_size} images"
        )
    return recorder.finish(outputs, {name for name, _ in archive.named_parameters()})


class _Recorder(ProxyTorchDispatchMode):
    """Writes down every call as a graph node while real tensors flow through.

    A dispatch mode above autograd must be one of torch's own (2.11 to 2.15), hence the base class;
    none of its tracing is used.
    """

    def __init__(self, example: Tensor, names: Mapping[Any, str]) -> None:
        super().__init__(PythonKeyTracer(), "real", pre_dispatch=True)
        self.graph = Graph()
        self.tensors: dict[str, Tensor] = {}
        self._names = names
        self._nodes: dict[int, Node] = {}
        self._constants: dict[str, Node] = {}
        self._alive: list[Any] = []
        node = self.graph.placeholder("x")
        node.meta.update(val=_example(example), owner="")
        self.inputs = (InputInfo("x", tuple(example.shape[1:]), example.dtype),)
        self._remember(example, node)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _DECOMPOSED:
            with self:
                return _DECOMPOSED[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if not func._schema.is_mutable:
            given = {id(value) for value in _tensors_in((args, kwargs))}
            result = _mapped(result, lambda v: aten.alias(v) if id(v) in given else v)
        if func.namespace == "aten":
            self._write(func, args, kwargs, result)
        elif any(isinstance(value, Tensor) for value in _tensors_in(result)):
            raise CaptureError(f"capturing the archive: it calls '{func}', which is not ATen")
        return result

    def finish(self, outputs: list[Tensor], parameters: set[str]) -> Program:
        self.graph.output(tuple(self._node_of(value) for value in outputs))
        trainable = frozenset(parameters.intersection(self.tensors))
        return prune(Program(self.graph, self.tensors, trainable, self.inputs))

    def _write(self, func: OpOverload, args: Any, kwargs: Any, result: Any) -> None:
        args, kwargs = _mapped((list(args), kwargs), self._node_of)
        node = self.graph.create_node("call_function", func, tuple(args), kwargs)
        node.meta.update(val=_mapped(result, _example), owner="")
        if isinstance(result, (list, tuple)):
            for index, item in enumerate(result):
                part = self.graph.call_function(operator.getitem, (node, index))
                part.meta.update(val=_mapped(item, _example), owner="")
                self._remember(item, part)
        else:
            self._remember(result, node)

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


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)


def _mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to everything in its lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, function) for key, item in value.items()}
    return function(value) if not isinstance(value, bool) else value


def _last_line(error: Exception) -> str:
    """The cause in an error of the TorchScript interpreter, which puts its own traceback first."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


# --- fused calls ----------------------------------------------------------------------------


def _encoder_layer(
    src: Tensor,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Tensor,
    norm_bias_1: Tensor,
    norm_weight_2: Tensor,
    norm_bias_2: Tensor,
    ffn_weight_1: Tensor,
    ffn_bias_1: Tensor,
    ffn_weight_2: Tensor,
    ffn_bias_2: Tensor,
    mask: Tensor | None = None,
    mask_type: int | None = None,  # noqa: ARG001 (the schema's)
) -> Tensor:
    """What `aten::_transformer_encoder_layer_fwd` computes, in plain calls
    (nn.TransformerEncoderLayer under no-grad).
    """
    if mask is not None:
        raise CaptureError(
            "capturing the archive: a fused encoder layer with a mask is not supported"
        )

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, [embed_dim], weight, bias, eps)

    def attend(x: Tensor) -> Tensor:
        batch, tokens = x.shape[0], x.shape[1]
        packed = nn.functional.linear(x, qkv_weight, qkv_bias)
        parts = packed.reshape(batch, tokens, 3, num_heads, embed_dim // num_heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        joined = mixed.reshape(batch, tokens, embed_dim)
        return nn.functional.linear(joined, proj_weight, proj_bias)

    def feed(x: Tensor) -> Tensor:
        inner = nn.functional.linear(x, ffn_weight_1, ffn_bias_1)
        inner = nn.functional.gelu(inner) if use_gelu else nn.functional.relu(inner)
        return nn.functional.linear(inner, ffn_weight_2, ffn_bias_2)

    if norm_first:
        src = src + attend(norm(src, norm_weight_1, norm_bias_1))
        return src + feed(norm(src, norm_weight_2, norm_bias_2))
    src = norm(src + attend(src), norm_weight_1, norm_bias_1)
    return norm(src + feed(src), norm_weight_2, norm_bias_2)


_DECOMPOSED: dict[Any, Callable[..., Any]] = {
    aten._transformer_encoder_layer_fwd.default: _encoder_layer,
}
