"""Compiling what a stage runs, with a way back. Layer: training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fitcompress.data import Batch
from fitcompress.training.objectives import Objective

__all__ = ["compile_networks", "is_worth_compiling", "uncompiled"]

_MIN_STEPS = 500
"""Of a stage, from which a minute or two of compiling come back."""


def is_worth_compiling(asked: str, device: str, num_steps: int) -> bool:
    """What "on", "off" or "auto" means here: "auto" compiles long stages on CUDA."""
    return asked == "on" or (asked == "auto" and device == "cuda" and num_steps >= _MIN_STEPS)


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
        for part in objective.networks:
            part._compiled_call_impl = None
        said = f"not compiled: {_reason(error)}"
    with torch.no_grad():
        for buffer, value in before.items():
            buffer.copy_(value)
    for parameter in objective.trained.parameters():
        parameter.grad = None
    return said


def _reason(error: BaseException) -> str:
    """The first line of what was wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs networks as they were written: evaluations come in too many shapes to compile for."""
    with torch.compiler.set_stance("force_eager"):
        yield
