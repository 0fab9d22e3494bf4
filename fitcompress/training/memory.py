"""Running out of memory, and keeping freed memory."""

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
from fitcompress.training.train_config import BatchPlan, TrainConfig

__all__ = ["in_memory", "keep_freed_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Makes the process reuse freed memory instead of returning it to the system.

    glibc may return large blocks and map them again, page by page, in every training step (12,000
    page faults per step were measured, a tenth of its time). Other allocators are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def in_memory(
    attempt: Callable[[BatchPlan, bool], StageResult],
    config: TrainConfig,
    plan: BatchPlan,
    *,
    resume: bool,
    emit: Emit,
) -> StageResult:
    """The result of `attempt(plan, resume)`.

    If memory runs out and `config.auto_batch` is set, the attempt resumes from its checkpoint with
    smaller micro-batches and accumulates more of them: the images of each step stay the same.

    Raises:
        TrainingError: out of memory, and the micro-batches may not, or cannot, become smaller.
    """
    while True:
        try:
            return attempt(plan, resume)
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        plan, resume = _smaller(config, plan, reason), True
        gc.collect()  # the traceback may have held on to tensors of the failed attempt
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        message = (
            f"{config.stage}: out of memory; each step now accumulates {plan.accumulate} batches"
            f" of {plan.batch_size} images (batch norm uses {plan.batch_size} images at a time)"
        )
        emit(Notice(topic="training", code="batch-size-reduced", message=message))


def _smaller(config: TrainConfig, plan: BatchPlan, reason: str) -> BatchPlan:
    size = plan.batch_size
    if not config.auto_batch or size == 1:
        raise TrainingError(
            f"training {config.stage}: out of memory with batches of {size} ({reason})",
            code="out-of-memory",
            advice="Use a smaller --batch-size with a larger data.accumulate, or --auto-batch."
            if size > 1
            else "Even one image does not fit in memory: use smaller images or a smaller network.",
            stage=config.stage,
            batch_size=size,
            reason=reason,
        )
    parts = next(factor for factor in range(2, size + 1) if size % factor == 0)
    return replace(plan, batch_size=size // parts, accumulate=plan.accumulate * parts)
