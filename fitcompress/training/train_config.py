"""A stage of training as values: what is requested, how it runs, and how far it is. No torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitcompress.errors import DataError, TrainingError
from fitcompress.recipe.schema import Layout, OptimRecipe, Precision

__all__ = [
    "BatchPlan",
    "Position",
    "Runtime",
    "TrainConfig",
    "check_settings",
    "plan_batches",
    "settings_of",
    "step_seed",
]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a stage of training computes; with the data, it determines the resulting weights."""

    stage: str
    """Name in events and messages; part of the random seed."""
    optim: OptimRecipe
    epochs: int
    batch_size: int
    """Images per micro-batch and process; reduced if an epoch would otherwise have no step."""
    seed: int
    checkpoint_path: Path
    """Written after every epoch, every ten minutes, and on SIGINT or SIGTERM."""
    accumulate: int = 1
    """Micro-batches per process and step."""
    auto_batch: bool = False
    """When memory runs out, halve the micro-batch and accumulate more of them."""
    recipe_hash: str = ""
    """Digest of everything else that the stage depends on; resuming requires an equal one."""


@dataclass(frozen=True, kw_only=True)
class Runtime:
    """Where and how a stage runs; changes results by rounding only."""

    device: str = "auto"
    precision: Precision = "auto"
    layout: Layout = "contiguous"
    """Memory format of the trained networks: "contiguous", "channels-last" or "auto"
    (channels-last except on MPS)."""
    compile: bool = False
    """Compile the networks; if that fails, train uncompiled and emit a notice."""
    num_workers: int = 0
    """Processes that load data."""
    shard: bool = False
    """Shard the networks over the processes."""


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """How the training images are divided into micro-batches, processes, steps and epochs."""

    batch_size: int
    """Images per micro-batch."""
    accumulate: int
    """Micro-batches per process and step."""
    num_processes: int
    steps_per_epoch: int
    epochs: int

    @property
    def batches_per_step(self) -> int:
        """Micro-batches over all processes."""
        return self.accumulate * self.num_processes

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.batches_per_step

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch


def plan_batches(
    config: TrainConfig, *, num_train: int, num_held_out: int, num_processes: int = 1
) -> BatchPlan:
    """The batch plan for the given numbers of images.

    Raises:
        DataError: there are too few training images, or early stopping has no held-out images.
        TrainingError: `auto_batch` with several processes.

    >>> config = TrainConfig(
    ...     stage="stage1", optim=OptimRecipe(), epochs=2, batch_size=64, accumulate=2, seed=0,
    ...     checkpoint_path=Path("stage1.pt"),
    ... )
    >>> plan = plan_batches(config, num_train=100, num_held_out=0)
    >>> plan.batch_size, plan.steps_per_epoch, plan.num_steps
    (50, 1, 2)
    """
    doing, batches_per_step = f"training {config.stage}", config.accumulate * num_processes
    if config.optim.patience and not num_held_out:
        raise DataError(
            f"{doing}: early stopping needs held-out images, and there are none",
            code="held-out-images-missing",
            advice="Remove optim.patience, or use more training images.",
            stage=config.stage,
        )
    if num_train == 0:
        raise DataError(
            f"{doing}: there are no training images",
            code="training-images-missing",
            stage=config.stage,
        )
    if num_train < batches_per_step:
        raise DataError(
            f"{doing}: a step takes {batches_per_step} batches, but there are only {num_train}"
            " training images",
            code="training-images-too-few",
            advice="Reduce data.accumulate, or start fewer processes.",
            stage=config.stage,
            expected=batches_per_step,
            got=num_train,
        )
    if config.auto_batch and num_processes > 1:
        raise TrainingError(
            f"{doing}: expected one process for --auto-batch, got {num_processes}",
            code="auto-batch-multiprocess",
            advice="Drop --auto-batch, and choose a --batch-size that fits in memory.",
            stage=config.stage,
            num_processes=num_processes,
        )
    batch_size = min(config.batch_size, num_train // batches_per_step)
    return BatchPlan(
        batch_size=batch_size,
        accumulate=config.accumulate,
        num_processes=num_processes,
        steps_per_epoch=num_train // (batch_size * batches_per_step),
        epochs=config.epochs,
    )


def settings_of(config: TrainConfig, plan: BatchPlan) -> dict[str, Any]:
    """The settings in a checkpoint, which resuming compares; the names are part of its format."""
    sizes = (
        {"images_per_step": plan.images_per_step}
        if config.auto_batch
        else {"batch_size": plan.batch_size, "accumulate": plan.accumulate}
    )
    return {
        "stage": config.stage,
        "epochs": config.epochs,
        **sizes,
        "num_processes": plan.num_processes,
        "steps_per_epoch": plan.steps_per_epoch,
        "seed": config.seed,
        "recipe_hash": config.recipe_hash,
        **asdict(config.optim),
    }


def check_settings(config: TrainConfig, plan: BatchPlan, stored: dict[str, Any]) -> None:
    """Refuses to resume with settings other than those stored in the checkpoint.

    Raises:
        TrainingError: they differ.
    """
    wanted = settings_of(config, plan)
    names = [name for name in wanted if wanted[name] != stored.get(name)]
    if names:
        differences = ", ".join(f"{name} {stored.get(name)} (now {wanted[name]})" for name in names)
        raise TrainingError(
            f"resuming {config.stage}: '{config.checkpoint_path}' was written with different"
            f" settings: {differences}",
            code="checkpoint-settings-mismatch",
            advice="Resume with the recipe stored in the run directory, or start a new run.",
            stage=config.stage,
            path=str(config.checkpoint_path),
            stored={name: stored.get(name) for name in names},
            now={name: wanted[name] for name in names},
        )


@dataclass
class Position:
    """How far a stage is; stored in the checkpoint."""

    epoch: int = 0
    """Finished epochs."""
    step: int = 0
    """Finished steps of the current epoch."""
    seconds: float = 0.0
    """Seconds of training steps in the finished epochs."""
    epoch_seconds: float = 0.0
    """Seconds of training steps in the current epoch."""
    waiting_seconds: float = 0.0
    """Seconds of these in which training waited for the next batch."""


def step_seed(seed: int, stage: str, epoch: int, step: int) -> int:
    """The 63-bit seed of torch's generator for one micro-batch.

    step: number of the micro-batch in the epoch, over all processes.

    >>> step_seed(0, "stage1", 0, 0) == step_seed(0, "stage1", 0, 1)
    False
    """
    digest = hashlib.blake2b(f"{seed}/{stage}/{epoch}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
