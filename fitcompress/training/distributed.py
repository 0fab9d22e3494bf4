"""The group of processes that train one network together.

`accelerate launch` starts them, on one machine or several; otherwise the group has one process.
Each rank has its own micro-batches, and either whole networks or its shards of them. Gradients are
averaged in every step. Rank 0 writes the files.

Methods marked "collective" communicate: every rank must call them.
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
from fitcompress.training.fsdp import full_tensors, shard_objective, sharded_modules
from fitcompress.training.protocols import Objective

__all__ = ["Losses", "ProcessGroup"]

Losses = Callable[[Batch, float], dict[str, Tensor | float]]
"""`Objective.losses`, in one process or in several."""

_DATA_PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's view of the processes that train together.

    Raises:
        TrainingError: Accelerate is configured for another kind of parallelism, or the networks
            cannot be sharded.
    """

    accelerator: Accelerator
    is_sharded: bool = False
    """Whether each rank holds only a shard of the networks."""

    def __post_init__(self) -> None:
        kind = self.accelerator.distributed_type
        if kind not in _DATA_PARALLEL:
            raise TrainingError(
                f"starting the processes: expected Accelerate to be configured for data"
                f" parallelism, got {kind.value}",
                code="parallelism-unsupported",
                advice="Launch with `accelerate launch --multi_gpu`. To shard the networks, add"
                " --shard.",
                got=kind.value,
            )
        if self.is_sharded and self.world_size == 1:
            raise TrainingError(
                "sharding the networks: expected several processes, got one",
                code="shard-single-process",
                advice="Start several with `accelerate launch` or `torchrun`.",
            )
        if self.is_sharded and self.accelerator.scaler is not None:
            raise TrainingError(
                "sharding the networks: fp16 needs gradient scaling, which sharding does not"
                " support",
                code="shard-fp16",
                advice="Use --precision bf16 or fp32.",
            )
        if self.is_first != is_first_process():
            raise TrainingError(
                f"starting the processes: Accelerate reports rank {self.rank} of"
                f" {self.world_size}, which contradicts RANK and WORLD_SIZE in the environment",
                code="rank-mismatch",
                advice="Launch with `accelerate launch` or `torchrun`.",
                rank=self.rank,
                world_size=self.world_size,
            )

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def rank(self) -> int:
        """The number of this process, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.rank == 0

    @property
    def evaluation_share(self) -> tuple[int, int]:
        """(index, number) of the share of batches that this rank evaluates. Sharded networks
        compute together, so every rank evaluates all batches.
        """
        return (0, 1) if self.is_sharded else (self.rank, self.world_size)

    def prepare(self, objective: Objective) -> tuple[Objective, Losses]:
        """The objective to train, on the device, and its losses, whose backward pass averages
        gradients over all ranks. With shards it is a copy of the given one. Collective.

        Buffers (running statistics) are broadcast from rank 0 before every forward pass; on GPUs
        batch norms are synchronized over all ranks.
        """
        device = self.accelerator.device
        if self.world_size > 1 and device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        if self.is_sharded:
            objective = shard_objective(objective, device, self.world_size)
            return objective, partial(self._losses_of_shards, objective)
        objective.to(device)
        if self.world_size == 1:
            return objective, objective.losses
        ids = [device.index] if device.type == "cuda" else None
        return objective, DistributedDataParallel(_LossModule(objective), device_ids=ids)

    def _losses_of_shards(
        self, objective: Objective, batch: Batch, progress: float
    ) -> dict[str, Tensor | float]:
        self.broadcast_buffers(objective.trained)
        return objective.losses(batch, progress)

    @contextmanager
    def no_sync(self, objective: Objective, losses: Losses) -> Iterator[None]:
        """Accumulates gradients locally; they are averaged by the next backward pass outside."""
        modules = sharded_modules(objective)
        for module in modules:
            module.set_requires_gradient_sync(False)
        with losses.no_sync() if isinstance(losses, DistributedDataParallel) else nullcontext():
            yield
        for module in modules:
            module.set_requires_gradient_sync(True)

    def copy_trained(self, prepared: Objective, given: Objective) -> None:
        """Copies the trained weights back into the objective that `prepare` was given; does
        nothing unless that returned a sharded copy. Collective.
        """
        if prepared is not given:
            given.trained.load_state_dict(full_tensors(prepared.trained.state_dict()))

    def broadcast_buffers(self, module: nn.Module) -> None:
        """Copies the buffers of rank 0 to every rank. Collective."""
        if self.world_size > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order of rank. Collective."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value)
        return values

    def means(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over all ranks, which must use the same names. Collective."""
        gathered = self.all_gather(dict(values))
        return {name: sum(own[name] for own in gathered) / len(gathered) for name in values}

    def barrier(self) -> None:
        """Waits until every rank is here. Collective."""
        self.accelerator.wait_for_everyone()


class _LossModule(nn.Module):
    """Calls the losses of an objective, so that `DistributedDataParallel` can wrap it."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        return self.objective.losses(batch, progress)
