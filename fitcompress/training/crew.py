"""The processes that train one network together, and what they tell each other. Layer: training.

`accelerate launch` starts them, on one machine or on many; without it there is one. Each has the
whole network and its own micro-batches; gradients are averaged in every step. The first process is
the one that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fitcompress.data import Batch
from fitcompress.errors import TrainingError
from fitcompress.rundir import is_first_process
from fitcompress.training.objectives import Objective

__all__ = ["Crew", "Losses"]

Losses = Callable[[Batch, float], dict[str, Tensor | float]]
"""`Objective.losses`, in one process or in several."""

_DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class Crew:
    """One process among those that train together.

    Raises:
        TrainingError: Accelerate was told to share the work in another way.
    """

    accelerator: Accelerator

    def __post_init__(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in _DATA_PARALLEL:
            raise TrainingError(
                f"starting the processes: Accelerate is configured for {kind.value}, and only"
                " data-parallel training is supported",
                advice="Launch with `accelerate launch --multi_gpu`, or as one process.",
            )
        if self.is_first != is_first_process():
            raise TrainingError(
                f"starting the processes: Accelerate says that this is process {self.index} of"
                f" {self.num}, RANK and WORLD_SIZE in the environment say otherwise",
                advice="Launch with `accelerate launch` or `torchrun`.",
            )

    @property
    def num(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def index(self) -> int:
        """Which one this is, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0

    def joined(self, objective: Objective) -> Losses:
        """The objective's losses, such that a backward pass averages gradients over all processes.

        Buffers (running statistics) are the first process's, handed on before every forward pass;
        on GPUs batch norms normalise by the images of all processes.
        """
        if self.num == 1:
            return objective.losses
        device = self.accelerator.device
        losses: nn.Module = _AsModule(objective)
        if device.type == "cuda":
            losses = nn.SyncBatchNorm.convert_sync_batchnorm(losses)
        ids = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(losses, device_ids=ids)

    def without_averaging(self, losses: Losses) -> AbstractContextManager[Any]:
        """Leaves gradients to be averaged with those of a later micro-batch."""
        if isinstance(losses, DistributedDataParallel):
            return losses.no_sync()
        return nullcontext()

    def hand_on(self, module: nn.Module) -> None:
        """Gives every process the first one's buffers."""
        if self.num > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def gathered(self, value: Any) -> list[Any]:
        """What each process says, in their order; all must ask."""
        if self.num == 1:
            return [value]
        values: list[Any] = [None] * self.num
        distributed.all_gather_object(values, value)
        return values

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over all processes of each value; all must have the same names."""
        every = self.gathered(dict(values))
        return {name: sum(own[name] for own in every) / len(every) for name in values}

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()


class _AsModule(nn.Module):
    """An objective whose call gives its losses."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        return self.objective.losses(batch, progress)
