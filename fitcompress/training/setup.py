"""What a stage is and where it stands, as values. Layer: training; no torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fitcompress.errors import TrainingError
from fitcompress.recipe import OptimRecipe

__all__ = ["Position", "Setup", "check_settings", "step_seed"]


def step_seed(seed: int, stage: str, epoch: int, step: int) -> int:
    """The seed of torch's generator for one step: 63 bits that depend on all four.

    >>> step_seed(0, "stage1", 0, 0) == step_seed(0, "stage1", 0, 1)
    False
    """
    digest = hashlib.blake2b(f"{seed}/{stage}/{epoch}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the stage is. All that decides its bits is in `settings`."""

    stage: str
    epochs: int
    batch_size: int
    steps_per_epoch: int
    seed: int
    optim: OptimRecipe
    recipe_hash: str
    num_workers: int
    checkpoint_path: Path

    @property
    def num_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @property
    def settings(self) -> dict[str, Any]:
        fields = ("stage", "epochs", "batch_size", "steps_per_epoch", "seed", "recipe_hash")
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


def check_settings(setup: Setup, stored: dict[str, Any]) -> None:
    wanted = setup.settings
    names = [name for name in wanted if wanted[name] != stored.get(name)]
    if names:
        differences = ", ".join(f"{name} {stored.get(name)} (now {wanted[name]})" for name in names)
        raise TrainingError(
            f"resuming {setup.stage}: '{setup.checkpoint_path}' was written with {differences}",
            advice="Resume with the recipe that the run directory holds, or start a new run.",
        )
