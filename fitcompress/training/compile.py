"""Compiling what a stage runs, with a way back. Layer: training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fitcompress.data.views import Batch
from fitcompress.training.protocols import Objective

__all__ = ["compile_networks", "compiler_said", "uncompiled", "uncompiled_in_the_end"]


def compile_networks(objective: Objective, batch: Batch) -> str:
    """Compiles the objective's networks in place and tries them on a batch, under the caller's
    autocast: what came of it. Where that fails they run as they were written.

    What the trial changes in buffers and gradients is put back.
    """
    objective.train()
    before = {buffer: buffer.clone() for part in objective.networks for buffer in part.buffers()}
    said = "compiled"
    try:
        for part in objective.networks:
            part.compile(dynamic=False)
        torch.as_tensor(objective.losses(batch, 0.0)["loss"]).backward()
    except Exception as error:  # dynamo, its backend and its compilers raise what they like
        _forget(objective)
        said = f"not compiled: {compiler_said(error)}"
    with torch.no_grad():
        for buffer, value in before.items():
            buffer.copy_(value)
    for parameter in objective.trained.parameters():
        parameter.grad = None
    return said


def compiler_said(error: BaseException) -> str:
    """The first line of what went wrong, inside of the compiler where it says so."""
    error = getattr(error, "inner_exception", error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def uncompiled_in_the_end(objective: Objective) -> Iterator[None]:
    """Leaves the objective's networks as they were written, compiled or not before."""
    try:
        yield
    finally:
        _forget(objective)


def _forget(objective: Objective) -> None:
    for part in objective.networks:
        part._compiled_call_impl = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs networks as they were written: evaluations come in too many shapes to compile for."""
    with torch.compiler.set_stance("force_eager"):
        yield
