"""What stages minimise, as modules that hold the networks; where hints are learnt: see
`hint_objectives`. Layer: training; knows no loop, optimizer or file.

Each objective answers three questions for the engine: what is trained (and checkpointed), what is
the loss of a batch, and how good is it on a held-out batch. Networks take the same uint8 views,
each through its own preprocessing. The teacher is always in eval mode and under `no_grad` (not
`inference_mode`, whose tensors may not enter a loss that trains something).
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
"""Name -> (sum over samples, number of samples), so that scores of batches can be added."""


class Objective(Protocol):
    """What the engine trains: an `nn.Module` whose `train` leaves any teacher in eval mode."""

    @property
    def trained(self) -> nn.Module:
        """Everything that is optimised and checkpointed."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """What is worth compiling: the networks that each batch goes through."""

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        """What is minimised, under "loss", and its parts by name.

        `progress` is 0 at the first step of the stage and 1 at the last.
        """

    def evaluate(self, batch: Batch) -> Scores:
        """Scores of a held-out batch, "loss" among them."""

    def train(self, mode: bool = True) -> Any: ...
    def to(self, device: torch.device) -> Any: ...
    def modules(self) -> Iterator[nn.Module]: ...


class TeachingObjective(Objective, Protocol):
    """An objective with a teacher, whose answers may come with the batch."""

    @property
    def teacher(self) -> nn.Module:
        """From uint8 images to what it says."""

    @property
    def needs_teacher(self) -> bool:
        """Whether it needs the teacher's answers at all."""

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the teacher says of the batch, on the device where it is."""
