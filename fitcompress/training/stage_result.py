"""The result of a stage, and the records and events that lead to it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fitcompress.events import Event, Notice, StageFinished
from fitcompress.training.train_config import BatchPlan, Position

__all__ = ["StageResult", "epoch_record", "last_events", "result_of"]

_LONG_WAIT, _LONG_WAIT_S = 0.2, 5.0
"""Share of the time, and seconds, above which waiting for images is reported."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """The cost and the course of a stage."""

    stage: str
    epochs: int
    num_images: int
    """Training images over all epochs, counting repeats."""
    seconds: float
    """Time of training steps, over all sessions of a resumed run; excludes evaluation and
    checkpoints."""
    images_per_s: float
    waiting_share: float
    """Share of `seconds` in which training waited for the next batch."""
    losses: dict[str, float]
    """Means over the last epoch, by name."""
    held_out: dict[str, float]
    """Scores after the last epoch; empty without held-out images."""
    history: tuple[dict[str, Any], ...]
    """Per epoch: "epoch" (from 1), "losses", "held_out", "seconds", "images_per_s"."""
    flops_per_image: int = 0
    """Floating-point operations per image in a training step; 0 if not counted."""


def epoch_record(
    plan: BatchPlan, position: Position, losses: dict[str, float], held_out: dict[str, float]
) -> dict[str, Any]:
    """A row of `StageResult.history` for the epoch that ends at `position`."""
    seconds = position.epoch_seconds
    num_images = plan.steps_per_epoch * plan.images_per_step
    return {
        "epoch": position.epoch + 1,
        "losses": losses,
        "held_out": held_out,
        "seconds": seconds,
        "images_per_s": num_images / max(seconds, 1e-9),
    }


def result_of(
    stage: str, plan: BatchPlan, position: Position, history: Sequence[dict[str, Any]]
) -> StageResult:
    """The result of a stage that ends at `position`."""
    num_steps = position.epoch * plan.steps_per_epoch + position.step
    num_images, seconds = num_steps * plan.images_per_step, position.seconds
    last = history[-1] if history else {"losses": {}, "held_out": {}}
    return StageResult(
        stage=stage,
        epochs=position.epoch,
        num_images=num_images,
        seconds=seconds,
        images_per_s=num_images / seconds if seconds else 0.0,
        waiting_share=position.waiting_seconds / seconds if seconds else 0.0,
        losses=last["losses"],
        held_out=last["held_out"],
        history=tuple(history),
    )


def last_events(result: StageResult, num_workers: int) -> Iterator[Event]:
    """`StageFinished`, preceded by a notice if training waited long for its images."""
    if result.waiting_share > _LONG_WAIT and result.waiting_share * result.seconds > _LONG_WAIT_S:
        yield Notice(
            topic="data",
            code="slow-data-loading",
            message=f"{result.stage} spent {result.waiting_share:.0%} of its time waiting for"
            f" images: load them in parallel with more --workers (now {num_workers})",
        )
    detail = {name: getattr(result, name) for name in ("losses", "held_out", "waiting_share")}
    yield StageFinished(
        stage=result.stage, seconds=result.seconds, num_images=result.num_images, detail=detail
    )
