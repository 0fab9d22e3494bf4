"""Captures a module as a `Program`.

The module runs on fake tensors, at two batch sizes, and its calls are recorded. Control flow, flags
and hooks behave as they do on a CPU.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor, FakeTensorMode

from fitcompress.errors import CaptureError
from fitcompress.graph.capture.dynamic_batch import make_batch_dynamic, merge_recordings
from fitcompress.graph.capture.functionalize import MutatedViewError, functionalize
from fitcompress.graph.capture.normalize import normalize, refuse_state
from fitcompress.graph.capture.recorder import BatchRefusedError, Recording, record
from fitcompress.graph.names import tidy_names
from fitcompress.graph.program import InputInfo, Program, prune
from fitcompress.modes import evaluating

__all__ = ["capture_module", "capture_named_module", "capture_recorded"]


def capture_module(module: nn.Module, example_inputs: Sequence[Tensor]) -> Program:
    """The program that `module` computes in eval mode, with a dynamic batch size. The module is not
    modified; the program shares its tensors.

    example_inputs: one tensor per input, batch first; only shapes and dtypes matter.

    Raises:
        CaptureError: the module does not run on such inputs, or is not a pure function of them.
    """
    return capture_named_module(module, example_inputs)[0]


def capture_named_module(
    module: nn.Module, example_inputs: Sequence[Tensor]
) -> tuple[Program, tuple[str, ...]]:
    """`capture_module`, with the names of the outputs."""
    names, what = _argument_names(module, len(example_inputs)), type(module).__name__
    infos = [
        InputInfo(name, tuple(value.shape[1:]), value.dtype)
        for name, value in zip(names, example_inputs, strict=True)
    ]
    with evaluating(module):
        record_at = partial(_record, module, infos)
        program, recording = capture_recorded(record_at, _BATCH_SIZES, infos, what)
    is_bare = any(value.is_meta for value in module.state_dict().values())
    for name, value in program.tensors.items():
        if isinstance(value, FakeTensor) or (value.is_meta and not is_bare):
            raise CaptureError(
                f"capturing {what}: its tensor '{name}' is a fake or meta tensor left by an"
                " earlier run",
                code="tensor-from-earlier-run",
                advice="Create the model again, and do not run it on fake or meta tensors first.",
                tensor=name,
            )
    return program, recording.names


_BATCH_SIZES = (6, 35)
"""Without a common factor, and such that fractions of the batch or the batch minus one are not the
same multiple of both. On fake tensors, any size costs the same."""


def _record(module: nn.Module, infos: Sequence[InputInfo], batch_size: int) -> Recording:
    with FakeTensorMode(allow_non_fake_inputs=True):
        examples = {
            info.name: torch.empty((batch_size, *info.shape), dtype=info.dtype) for info in infos
        }
    with _keeping_attributes(module):
        return record(module, examples, type(module).__name__)


def _argument_names(module: nn.Module, count: int) -> list[str]:
    """The names of the first `count` arguments of the module's `forward`."""
    names: list[str] = []
    for parameter in inspect.signature(module.forward).parameters.values():
        is_rest = parameter.kind is parameter.VAR_POSITIONAL
        rest = count - len(names) if is_rest else 0
        names += [f"{parameter.name}_{i}" for i in range(rest)] or [parameter.name]
    return [*names, *(f"input_{i}" for i in range(count))][:count]


@contextmanager
def _keeping_attributes(module: nn.Module) -> Iterator[None]:
    """Restores the attributes of all submodules, so that a run does not affect the next one."""
    owned = [child for child in module.modules() if not isinstance(child, torch.jit.ScriptModule)]
    before = [(vars(child), _copied(vars(child))) for child in owned]
    try:
        yield
    finally:
        for attributes, kept in before:
            for name in attributes.keys() - kept.keys():
                del attributes[name]
            for name, (value, content) in kept.items():
                attributes[name] = value
                if content is not None:
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(content)


def _copied(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a copy of its content if it is a collection."""
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list, set)) else None)
        for name, value in attributes.items()
    }


def capture_recorded(
    record_at: Callable[[int], Recording],
    batch_sizes: tuple[int, int],
    infos: Sequence[InputInfo],
    what: str,
) -> tuple[Program, Recording]:
    """The program of a network from recordings at two batch sizes, with the last recording. A
    network that only runs at the batch size it was traced with is recorded at that one.

    Raises:
        CaptureError: the network does not run, keeps state, or its batch size cannot be freed.
    """
    try:
        one, other = map(record_at, batch_sizes)
    except BatchRefusedError as error:
        return _at_fixed_batch(record_at, infos, what, error)
    programs = _functionalized(one.program, what), _functionalized(other.program, what)
    return tidy_names(normalize(merge_recordings(*programs, batch_sizes))), other


def _at_fixed_batch(
    record_at: Callable[[int], Recording], infos: Sequence[InputInfo], what: str, cause: Exception
) -> tuple[Program, Recording]:
    for batch_size in (1, 2, 4, 8, 16, 32, 64):
        try:
            recording = record_at(batch_size)
        except BatchRefusedError:
            continue
        program = tidy_names(normalize(_functionalized(recording.program, what)))
        return make_batch_dynamic(program, batch_size), recording
    inputs = [f"{info.shape} {str(info.dtype).split('.')[-1]}" for info in infos]
    raise CaptureError(
        f"running {what} on inputs of {' and '.join(inputs)}: {cause}",
        code="network-run-failed",
        inputs=inputs,
        cause=str(cause),
    ) from cause


def _functionalized(recording: Program, what: str) -> Program:
    """The recording without in-place calls. Runs before the recordings are merged, because writing
    to a view needs sizes as numbers."""
    try:
        functionalize(recording.graph)
    except MutatedViewError as error:
        raise CaptureError(
            f"capturing {what}: {error}",
            code="view-write-unsupported",
            advice="Try a .pt2 export of the model.",
            cause=str(error),
        ) from error
    written = {node.meta["mutates"] for node in recording.graph.nodes if "mutates" in node.meta}
    kept = prune(recording)
    for node in written.intersection(kept.graph.nodes):
        refuse_state(node)  # the old value is read, so the next run would read the new one
    return kept
