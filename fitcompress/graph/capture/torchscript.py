"""Captures a TorchScript archive as a `Program`.

The archive is recorded on real values, the program is verified against its outputs, and names and
owners are inferred from its weights.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import nn

from fitcompress.errors import CaptureError, TeacherError
from fitcompress.formatting import first_line
from fitcompress.graph.capture.archive_devices import without_devices
from fitcompress.graph.capture.dynamic_batch import agree
from fitcompress.graph.capture.eager import capture_recorded
from fitcompress.graph.capture.module_paths import infer_owners, name_by_use
from fitcompress.graph.capture.recorder import BatchRefusedError, Recording, record
from fitcompress.graph.examples import random_input
from fitcompress.graph.program import InputInfo, Program, run_program
from fitcompress.modes import evaluating

__all__ = ["capture_named_torchscript", "capture_torchscript", "load_torchscript"]


def load_torchscript(path: Path) -> torch.jit.ScriptModule:
    """The archive on the CPU, whichever device it was saved on.

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
            f" {first_line(error)}",
            code="archive-unreadable",
            advice="Copy the file again, or save it again with this version of torch.",
            path=str(path),
            cause=first_line(error),
        ) from error


def capture_torchscript(archive: nn.Module, *inputs: tuple[int, ...] | InputInfo) -> Program:
    """The program of an archive, with a dynamic batch size.

    inputs: its inputs; a shape, without the batch, stands for a float32 input.

    Raises:
        CaptureError: the archive does not run on such inputs, keeps state, or its batch size cannot
            be freed.
    """
    return capture_named_torchscript(archive, *inputs)[0]


def capture_named_torchscript(
    archive: nn.Module, *inputs: tuple[int, ...] | InputInfo
) -> tuple[Program, tuple[str, ...]]:
    """`capture_torchscript`, with the names of the outputs."""
    infos = [InputInfo("", item) if isinstance(item, tuple) else item for item in inputs]
    with evaluating(archive):
        program, recording = capture_recorded(
            partial(_record, archive, infos), _BATCH_SIZES, infos, "the archive"
        )
        return _checked(infer_owners(name_by_use(program)), recording), recording.names


def _checked(program: Program, recording: Recording) -> Program:
    """The program, after verifying that it reproduces the outputs of the recording."""
    with _same_draws():
        found = run_program(program, *recording.examples)
    if not all(map(agree, found, recording.outputs)):
        raise CaptureError(
            "capturing the archive: the captured graph does not reproduce the archive's outputs",
            code="archive-not-reproduced",
            advice="Export the original model as a .pt2 file instead.",
        )
    return program


_BATCH_SIZES = (2, 5)
"""Small, since values are computed, and without a common factor."""


@contextmanager
def _same_draws() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _record(archive: nn.Module, infos: Sequence[InputInfo], batch_size: int) -> Recording:
    """A recording of a run on random inputs."""
    generator = torch.Generator().manual_seed(0)
    examples = [random_input(info, batch_size, generator) for info in infos]
    names = [info.name for info in infos if info.name] or _argument_names(archive)
    if _writes_to_itself(archive):  # so that this run does not affect the next one
        archive = copy.deepcopy(archive)
    with _same_draws():
        recording = record(archive, dict(zip(names, examples, strict=False)), "the archive")
    if any(value.ndim == 0 or value.shape[0] != batch_size for value in recording.outputs):
        raise BatchRefusedError(
            f"its outputs do not have one row per sample for {batch_size} samples"
        )
    return recording


def _writes_to_itself(archive: nn.Module) -> bool:
    graph = archive.inlined_graph
    return any(graph.findAllNodes(kind) for kind in ("prim::SetAttr", "aten::_set_item"))  # type: ignore[operator, union-attr]


def _argument_names(archive: nn.Module) -> list[str]:
    """The names of the archive's inputs."""
    arguments = archive.forward.schema.arguments[1:]  # type: ignore[attr-defined]
    return [re.sub(r"\W", "_", argument.name) for argument in arguments]
