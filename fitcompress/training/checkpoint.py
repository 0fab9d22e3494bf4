"""The checkpoint of a stage: one dictionary that `torch.load(weights_only=True)` can read.

Files are written atomically: a crash at any moment leaves the old checkpoint or the new one.
Reading verifies the checksum of every part first.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.atomic import atomic_path
from fitcompress.errors import RunError, TrainingError
from fitcompress.formatting import first_line
from fitcompress.training.early_stopping import BestWeights
from fitcompress.training.ema import WeightAverage
from fitcompress.training.fsdp import full_tensors, load_full_state, load_optimizer

__all__ = ["FORMAT_VERSION", "TrainState", "all_finite", "read_checkpoint", "write_checkpoint"]

FORMAT_VERSION = 3
"""Raised when a field changes its meaning; other versions are refused."""


@dataclass(frozen=True)
class TrainState:
    """Everything that a training step modifies."""

    trained: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    best: BestWeights
    scaler: Any
    """torch's GradScaler, or None."""

    def state(self) -> dict[str, Any]:
        """The unsharded state for `restore`. Collective: every rank must call it."""
        return {
            "trained": self.weights(),
            "optimizer": full_tensors(self.optimizer.state_dict()),
            "average": self.average.state(),
            "best": self.best.state(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }

    def weights(self) -> dict[str, Tensor]:
        """The unsharded state of the trained module. Collective: every rank must call it."""
        return full_tensors(self.trained.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Loads a stored state.

        Raises:
            RuntimeError, ValueError: the state is of another network.
        """
        load_full_state(self.trained, state["trained"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.average.restore(state["average"])
        self.best.restore(state["best"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Replaces the checkpoint at `path`; if that fails the old one is left intact.

    Raises:
        TrainingError: the file cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({**content, "version": FORMAT_VERSION}, buffer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(buffer.getbuffer())
    except (RunError, OSError) as error:
        cause = error.__cause__ or error
        num_bytes = buffer.getbuffer().nbytes
        raise TrainingError(
            f"writing the checkpoint '{path}' ({num_bytes:,} bytes):"
            f" {getattr(cause, 'strerror', None) or cause}",
            code="checkpoint-not-written",
            advice="Free disk space or fix the permissions of the directory, then use --resume;"
            " the previous checkpoint is intact.",
            path=str(path),
            num_bytes=num_bytes,
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content that `write_checkpoint` stored, with all tensors on the CPU.

    Raises:
        TrainingError: the file is damaged, has another version, or is not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not verify checksums
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise _unreadable(path, first_line(error)) from error
    if damaged:
        raise _unreadable(path, f"its part '{damaged}' does not match its checksum")
    if not isinstance(content, dict) or "trained" not in content:
        raise _unreadable(path, "it is not a checkpoint")
    if content.get("version") != FORMAT_VERSION:
        raise _unreadable(path, f"expected format {FORMAT_VERSION}, got {content.get('version')}")
    return content


def _unreadable(path: Path, reason: str) -> TrainingError:
    return TrainingError(
        f"reading the checkpoint '{path}': {reason}",
        code="checkpoint-unreadable",
        advice="Delete the file and use --resume to train the stage again from its start.",
        path=str(path),
        reason=reason,
    )


def all_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether no weight is NaN or infinite; asks the device once."""
    flags = [torch.isfinite(value).all() for value in state.values() if value.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())
