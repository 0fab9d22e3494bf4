"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from fitcompress.errors import RecipeError, near_misses
from fitcompress.recipe.schema import Schedule

__all__ = ["learning_rate"]


def learning_rate(
    step: int, *, num_steps: int, warmup_steps: float, peak: float, schedule: Schedule
) -> float:
    """The learning rate of a step: linear warm-up to `peak`, then the schedule.

    Args:
        step: number of the step in the stage, from 0.
        num_steps: steps of the stage.
        warmup_steps: capped at half of the stage.
        peak: the highest rate.
        schedule: "cosine" (to zero after the last step), "steps" (divided by 10 after 5/8, 3/4 and
            7/8 of the stage, as in CIFAR-100 benchmarks) or "constant".

    Raises:
        RecipeError: the schedule is unknown.

    >>> settings = {"num_steps": 4, "warmup_steps": 0, "peak": 1.0, "schedule": "cosine"}
    >>> [round(learning_rate(step, **settings), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    if schedule not in _SCHEDULES:
        raise RecipeError(
            f"setting the learning rate: unknown schedule {schedule!r}",
            code="schedule-unknown",
            advice=near_misses(schedule, _SCHEDULES) or f"Use one of {', '.join(_SCHEDULES)}.",
            schedule=schedule,
        )
    warmup = min(warmup_steps, num_steps / 2)
    if step + 1 < warmup:
        return peak * (step + 1) / warmup
    if schedule == "constant":
        return peak
    if schedule == "steps":
        return peak * 0.1 ** sum(step >= share * num_steps for share in _FALLS)
    share = max(0.0, step - warmup) / max(num_steps - warmup, 1)
    return peak * 0.5 * (1.0 + math.cos(math.pi * share))


_SCHEDULES = ("cosine", "steps", "constant")
_FALLS = (5 / 8, 3 / 4, 7 / 8)
"""After 150, 180 and 210 of 240 epochs (Tian et al., ICLR 2020)."""
