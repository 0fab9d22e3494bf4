"""The rank and number of processes, from the environment variables that launchers set."""

from __future__ import annotations

import os

__all__ = ["is_first_process", "num_processes"]


def num_processes() -> int:
    """The number of processes that `accelerate launch` or `torchrun` started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this process has rank 0: the only one that writes files."""
    return num_processes() == 1 or os.environ.get("RANK", "0") == "0"
