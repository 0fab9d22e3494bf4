"""What a stage is and where it stands, as values. Layer: training; no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitcompress.errors import DataError, TrainingError
from fitcompress.recipe.schema import OptimRecipe

__all__ = [
    "Position",
    "TrainConfig",
    "check_held_out",
    "check_settings",
    "fit_steps",
    "step_seed",
]


def step_seed(seed: int, stage: str, epoch: int, step: int) -> int:
    """The seed of torch's generator for one micro-batch: 63 bits that depend on all four.

    step: the micro-batch's number in the epoch, over all processes.

    >>> step_seed(0, "stage1", 0, 0) == step_seed(0, "stage1", 0, 1)
    False
    """
    digest = hashlib.blake2b(f"{seed}/{stage}/{epoch}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def fit_steps(
    stage: str, num_images: int, batch_size: int, batches_per_step: int
) -> tuple[int, int]:
    """The batch size, smaller where an epoch would not have a single step of so many batches, and
    the steps of an epoch.

    Raises:
        DataError: there is not an image for each batch.

    >>> fit_steps("stage1", 100, 64, 1), fit_steps("stage1", 100, 64, 2)
    ((64, 1), (50, 1))
    """
    if num_images == 0:
        raise DataError(f"training {stage}: there are no training images")
    if num_images < batches_per_step:
        raise DataError(
            f"training {stage}: a step takes {batches_per_step} batches, and there are only"
            f" {num_images} training images",
            advice="accumulate less (data.accumulate), or start fewer processes",
        )
    batch_size = min(batch_size, num_images // batches_per_step)
    return batch_size, num_images // (batch_size * batches_per_step)


def check_held_out(stage: str, optim: OptimRecipe, num_images: int) -> None:
    """Refuses to look for the best epoch without images to judge by."""
    if optim.patience and not num_images:
        raise DataError(
            f"training {stage}: its best epoch cannot be told, there are no held-out images",
            advice="leave out optim.patience, or use more training images",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What the stage is. All that decides its bits is in `settings`."""

    stage: str
    epochs: int
    batch_size: int
    """Images of a micro-batch: what one process takes at once."""
    accumulate: int
    """Micro-batches of a process in a step."""
    num_processes: int
    steps_per_epoch: int
    seed: int
    optim: OptimRecipe
    recipe_hash: str
    num_workers: int
    checkpoint_path: Path
    auto_batch: bool = False
    """Whether batches may be made smaller where memory runs out, and more of them taken."""

    def __post_init__(self) -> None:
        if self.auto_batch and self.num_processes > 1:
            raise TrainingError(
                f"training {self.stage}: batches cannot be made smaller in one of"
                f" {self.num_processes} processes: the others would wait for it",
                advice="Leave out --auto-batch, and use a --batch-size that fits.",
            )

    @property
    def batches_per_step(self) -> int:
        """Micro-batches of all processes."""
        return self.accumulate * self.num_processes

    @property
    def images_per_step(self) -> int:
        return self.batch_size * self.batches_per_step

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def settings(self) -> dict[str, Any]:
        sizes = ("images_per_step",) if self.auto_batch else ("batch_size", "accumulate")
        fields = (
            *("stage", "epochs", *sizes, "num_processes", "steps_per_epoch"),
            *("seed", "recipe_hash"),
        )
        return {name: getattr(self, name) for name in fields} | asdict(self.optim)


@dataclass
class Position:
    """Where the training stands; all of it is in the checkpoint."""

    epoch: int = 0
    """Epochs done."""
    step: int = 0
    """Steps done in the epoch under way."""
    seconds: float = 0.0
    """Spent on training steps of the epochs done."""
    epoch_seconds: float = 0.0
    """Spent on training steps of the epoch under way."""
    waiting_seconds: float = 0.0
    """Of all these, those in which the next batch was not there yet."""


def check_settings(config: TrainConfig, stored: dict[str, Any]) -> None:
    wanted = config.settings
    names = [name for name in wanted if wanted[name] != stored.get(name)]
    if names:
        differences = ", ".join(f"{name} {stored.get(name)} (now {wanted[name]})" for name in names)
        raise TrainingError(
            f"resuming {config.stage}: '{config.checkpoint_path}' was written with {differences}",
            advice="Resume with the recipe that the run directory holds, or start a new run.",
        )
