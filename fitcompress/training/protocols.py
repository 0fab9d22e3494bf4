"""The interface between the training loop and the objectives of the stages.

An objective defines what is trained (and checkpointed), the loss of a batch, and the scores of a
held-out batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fitcompress.data.views import Batch

__all__ = ["Objective", "Scores", "TeachingObjective", "Values"]

Values = tuple[Tensor, ...]

Scores = Mapping[str, tuple[Tensor | float, Tensor | int]]
"""(Sum over samples, number of samples) by name, so that the scores of batches can be added."""


class Objective(Protocol):
    """What the engine trains: an `nn.Module` whose `train` keeps a teacher in eval mode."""

    @property
    def trained(self) -> nn.Module:
        """The module that is optimized and checkpointed."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """The networks that every batch passes through; these may be compiled."""

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """The loss to minimize, as "loss", and its parts by name.

        progress: from 0 at the first step of the stage to 1 at the last.
        """

    def evaluate(self, batch: Batch) -> Scores:
        """The scores of a held-out batch, including "loss"."""

    def train(self, mode: bool = True) -> Any: ...
    def to(self, device: torch.device) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...


class TeachingObjective(Objective, Protocol):
    """An objective with a teacher, whose outputs may be cached in the batch."""

    @property
    def teacher(self) -> nn.Module:
        """From uint8 images to the teacher's outputs."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the objective uses the teacher's outputs."""

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """The teacher's outputs for a batch, on the batch's device."""
