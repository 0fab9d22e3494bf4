"""The learning rate as a pure function of the step. Layer: training; knows no optimizer."""

from __future__ import annotations

import math

from fitcompress.errors import RecipeError, near_misses

__all__ = ["learning_rate"]


def learning_rate(
    step: int, *, num_steps: int, warmup_steps: float, peak: float, schedule: str
) -> float:
    """The rate for `step` (0 is the first of `num_steps`): linear warm-up to `peak`, then the
    schedule.

    Args:
        step: counted over the whole stage.
        num_steps: of the whole stage.
        warmup_steps: at most half of the stage is spent on them.
        peak: the highest rate.
        schedule: "cosine" (to zero after the last step) or "constant".

    Raises:
        RecipeError: no such schedule.

    >>> settings = {"num_steps": 4, "warmup_steps": 0, "peak": 1.0, "schedule": "cosine"}
    >>> [round(learning_rate(step, **settings), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if schedule not in ("cosine", "constant"):
        raise RecipeError(
            f"setting the learning rate: no schedule {schedule!r}",
            advice=near_misses(schedule, ["cosine", "constant"]) or "Use 'cosine' or 'constant'.",
        )
    warmup = min(warmup_steps, num_steps / 2)
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    share = max(0.0, step - warmup) / max(num_steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))
