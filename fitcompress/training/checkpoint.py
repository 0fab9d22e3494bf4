"""The checkpoint of a stage: one dictionary that `torch.load(weights_only=True)` reads, written
atomically. Layer: training.

Writing: the bytes go to `<name>.tmp` beside it, are forced to disk, and then take the final name: a
crash at any moment leaves the old checkpoint or the new one, never a half. Reading checks every
part against its checksum first.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.errors import TrainingError
from fitcompress.formatting import first_line
from fitcompress.training.early_stopping import BestWeights
from fitcompress.training.ema import WeightAverage
from fitcompress.training.fsdp import load_in_shards, load_optimizer, whole

__all__ = ["FORMAT_VERSION", "TrainState", "all_finite", "read_checkpoint", "write_checkpoint"]

FORMAT_VERSION = 3
"""Raised when a field changes its meaning; other versions are refused."""

_ADVICE_UNREADABLE = "Delete that file to train the stage again from its start, then use --resume."


@dataclass(frozen=True)
class TrainState:
    """Everything that steps of training change."""

    trained: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    best: BestWeights
    scaler: Any
    """torch's GradScaler, or None."""

    def state(self) -> dict[str, Any]:
        """What `restore` takes, whole; of several processes all must ask."""
        return {
            "trained": self.weights(),
            "optimizer": whole(self.optimizer.state_dict()),
            "average": self.average.state(),
            "best": self.best.state(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else {},
        }

    def weights(self) -> dict[str, Tensor]:
        """Those of what is trained, whole; of several processes all must ask."""
        return whole(self.trained.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from a stored state.

        Raises:
            RuntimeError, ValueError: it is that of another network.
        """
        load_in_shards(self.trained, state["trained"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.average.restore(state["average"])
        self.best.restore(state["best"])
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Puts `content` in place of what `path` holds, or leaves it untouched.

    Raises:
        TrainingError: the file cannot be written; it names the file.
    """
    buffer = io.BytesIO()
    torch.save({**content, "version": FORMAT_VERSION}, buffer)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_to_disk(temporary, buffer)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove_quietly(temporary)
        raise TrainingError(
            f"writing the checkpoint '{path}' ({buffer.getbuffer().nbytes:,} bytes):"
            f" {error.strerror or error}",
            advice="Make room or mend the folder, then use --resume; the last one is intact.",
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `write_checkpoint` put there, with all tensors on the CPU.

    Raises:
        TrainingError: the file is damaged, of another version, or not a checkpoint.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not check the checksums
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
    return TrainingError(f"reading the checkpoint '{path}': {reason}", advice=_ADVICE_UNREADABLE)


def _write_to_disk(path: Path, buffer: io.BytesIO) -> None:
    with path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    """Makes the rename itself last through a power cut; folders cannot be opened on Windows."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the disk is in trouble already: the error being raised says so


def all_finite(state: Mapping[str, Tensor]) -> bool:
    """Whether no weight is NaN or infinite; asks the device once."""
    flags = [torch.isfinite(value).all() for value in state.values() if value.is_floating_point()]
    return not flags or bool(torch.stack(flags).all())
