"""Compiling the networks of a stage, and undoing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fitcompress.data.views import Batch
from fitcompress.training.protocols import Objective

__all__ = ["compile_networks", "compiler_message", "uncompiled", "uncompiled_in_the_end"]


def compile_networks(objective: Objective, batch: Batch) -> str | None:
    """Compiles the objective's networks in place and tries them on a batch, under the caller's
    autocast. If that fails they run uncompiled.

    Changes of the trial to buffers and gradients are undone.

    Returns:
        Why compiling failed, or None.
    """
    objective.train()
    before = {buffer: buffer.clone() for part in objective.networks for buffer in part.buffers()}
    failure = None
    try:
        for part in objective.networks:
            part.compile(dynamic=False)
        torch.as_tensor(objective.losses(batch, 0.0)["loss"]).backward()
    except Exception as error:  # dynamo, its backends and their compilers raise anything
        _discard_compiled(objective)
        failure = compiler_message(error)
    with torch.no_grad():
        for buffer, value in before.items():
            buffer.copy_(value)
    for parameter in objective.trained.parameters():
        parameter.grad = None
    return failure


def compiler_message(error: BaseException) -> str:
    """The first line of a compiler's error, of its inner exception if there is one."""
    error = getattr(error, "inner_exception", error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def uncompiled_in_the_end(objective: Objective) -> Iterator[None]:
    """Makes the objective's networks run uncompiled after the block."""
    try:
        yield
    finally:
        _discard_compiled(objective)


def _discard_compiled(objective: Objective) -> None:
    for part in objective.networks:
        part._compiled_call_impl = None


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs networks uncompiled: evaluations have too many shapes to compile for."""
    with torch.compiler.set_stance("force_eager"):
        yield
