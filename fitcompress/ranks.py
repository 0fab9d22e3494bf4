"""The processes of a run, as the environment has them. Layer: standard library."""

from __future__ import annotations

import os

__all__ = ["is_first_process", "num_processes"]


def num_processes() -> int:
    """How many `accelerate launch` or `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the one process of a run that writes: the only one, or the first."""
    return num_processes() == 1 or os.environ.get("RANK", "0") == "0"
