"""Batches that fit into memory, and memory that is kept. Layer: training."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from fitcompress.errors import TrainingError
from fitcompress.events import Emit, Notice
from fitcompress.formatting import first_line
from fitcompress.training.stage_result import StageResult
from fitcompress.training.train_config import TrainConfig

__all__ = ["in_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Makes this process keep the memory of what it frees for what it allocates next.

    glibc may give large blocks back to the system and take them again, page by page, in every step
    of training (12,000 page faults a step were seen, a tenth of its time). Where another library
    allocates, nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def in_memory(
    attempt: Callable[[TrainConfig, bool], StageResult],
    config: TrainConfig,
    resume: bool,
    emit: Emit,
) -> StageResult:
    """The result of `attempt(config, resume)`. Where memory runs out and the set-up allows it, the
    attempt goes on from its checkpoint with smaller batches, more of them to a step: each step sees
    the same images.

    Raises:
        TrainingError: memory ran out, and batches may not be smaller, or cannot be.
    """
    while True:
        try:
            return attempt(config, resume)
        except torch.OutOfMemoryError as error:
            said = first_line(error)
        config, resume = _smaller(config, said), True
        gc.collect()  # what failed may be held by its own traceback
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = (
            f"{config.stage}: memory ran out; from here on a step takes {config.accumulate} batches"
            f" of {config.batch_size} images (batch norms see that many at once)"
        )
        emit(Notice(topic="training", message=message))


def _smaller(config: TrainConfig, said: str) -> TrainConfig:
    size = config.batch_size
    if not config.auto_batch or size == 1:
        what = f"training {config.stage}: memory ran out with batches of {size} ({said})"
        advice = "Use a smaller --batch-size with a larger data.accumulate, or --auto-batch."
        raise TrainingError(what, advice=advice if size > 1 else "One image is too much for it.")
    parts = next(factor for factor in range(2, size + 1) if size % factor == 0)
    return replace(config, batch_size=size // parts, accumulate=config.accumulate * parts)
