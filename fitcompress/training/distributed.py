"""The processes that train one network together, and what they tell each other. Layer: training.

`accelerate launch` starts them, on one machine or on many; without it there is one. Each has its
own micro-batches, and the whole networks or its shards of them; gradients are averaged in every
step. The first process is the one that writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fitcompress.data.views import Batch
from fitcompress.errors import TrainingError
from fitcompress.ranks import is_first_process
from fitcompress.training.fsdp import into_shards, sharded_modules, whole
from fitcompress.training.protocols import Objective

__all__ = ["Losses", "ProcessGroup"]

Losses = Callable[[Batch, float], dict[str, Tensor | float]]
"""`Objective.losses`, in one process or in several."""

_DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class ProcessGroup:
    """One process among those that train together.

    Raises:
        TrainingError: Accelerate was told to share the work in another way.
    """

    accelerator: Accelerator
    shards: bool = False
    """Whether each keeps only a part of the networks."""

    def __post_init__(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in _DATA_PARALLEL:
            raise TrainingError(
                f"starting the processes: Accelerate is configured for {kind.value}, and here it"
                " only starts processes that train on their own batches",
                advice="Launch with `accelerate launch --multi_gpu`; --shard shards the networks.",
            )
        if self.shards and self.num == 1:
            raise TrainingError(
                "sharding the networks: there is one process, which would hold all of them",
                advice="Start several with `accelerate launch` or `torchrun`.",
            )
        if self.shards and self.accelerator.scaler is not None:
            raise TrainingError(
                "sharding the networks: fp16 gradients cannot be scaled in shards",
                advice="Use --precision bf16 or fp32.",
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

    def joined(self, objective: Objective) -> tuple[Objective, Losses]:
        """The objective to train, on the device, and its losses, such that a backward pass averages
        gradients over all processes. In shards it is a copy of the one given.

        Buffers (running statistics) are the first process's, handed on before every forward pass;
        on GPUs batch norms normalise by the images of all processes.
        """
        device = self.accelerator.device
        if self.num > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        if self.shards:
            objective = into_shards(objective, device, self.num)
            return objective, partial(self._losses_of_shards, objective)
        objective.to(device)
        if self.num == 1:
            return objective, objective.losses
        ids = [device.index] if device.type == "cuda" else None
        return objective, DistributedDataParallel(_AsModule(objective), device_ids=ids)

    def _losses_of_shards(
        self, objective: Objective, batch: Batch, progress: float
    ) -> dict[str, Tensor | float]:
        self.broadcast_buffers(objective.trained)
        return objective.losses(batch, progress)

    @contextmanager
    def without_averaging(self, objective: Objective, losses: Losses) -> Iterator[None]:
        """Leaves gradients to be averaged with those of a later micro-batch."""
        modules = sharded_modules(objective)
        for module in modules:
            module.set_requires_gradient_sync(False)
        with losses.no_sync() if isinstance(losses, DistributedDataParallel) else nullcontext():
            yield
        for module in modules:
            module.set_requires_gradient_sync(True)

    @property
    def share(self) -> tuple[int, int]:
        """(index, number) of the parts in which batches are evaluated; in shards all see all, since
        they compute together.
        """
        return (0, 1) if self.shards else (self.index, self.num)

    def restore_given(self, trained: Objective, given: Objective) -> None:
        """Puts what was trained, whole, into the objective that `joined` was given; where shards
        trained it stays on the host.
        """
        if trained is not given:
            given.trained.load_state_dict(whole(trained.trained.state_dict()))

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Gives every process the first one's buffers."""
        if self.num > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def all_gather(self, value: Any) -> list[Any]:
        """What each process says, in their order; all must ask."""
        if self.num == 1:
            return [value]
        values: list[Any] = [None] * self.num
        distributed.all_gather_object(values, value)
        return values

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean over all processes of each value; all must have the same names."""
        every = self.all_gather(dict(values))
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
