"""What a finished stage leaves behind as a value. Layer: training; no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fitcompress.events import Event, Notice, StageFinished
from fitcompress.training.train_config import Position, TrainConfig

__all__ = ["StageResult", "epoch_record", "last_events", "result_of"]


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """What a stage cost and how it went."""

    stage: str
    epochs: int
    num_images: int
    """Images seen over all epochs, repeats counted."""
    seconds: float
    """Spent on training steps, over all sessions of a resumed run; without evaluation and
    checkpoints.
    """
    images_per_s: float
    waiting_share: float
    """Share of the seconds in which the next batch was not there yet."""
    losses: dict[str, float]
    """Means over the last epoch, by name."""
    held_out: dict[str, float]
    """Scores after the last epoch; empty without held-out images."""
    history: tuple[dict[str, Any], ...]
    """Per epoch: "epoch" (from 1), "losses", "held_out", "seconds", "images_per_s"."""
    flops_per_image: int = 0
    """Floating-point operations of one image in a training step; 0 where nobody counted."""


def epoch_record(
    config: TrainConfig, position: Position, losses: dict[str, float], held_out: dict[str, float]
) -> dict[str, Any]:
    """The epoch that `position` has come to the end of, as a row of `StageResult.history`."""
    seconds = position.epoch_seconds
    num_images = config.steps_per_epoch * config.images_per_step
    return {
        "epoch": position.epoch + 1,
        "losses": losses,
        "held_out": held_out,
        "seconds": seconds,
        "images_per_s": num_images / max(seconds, 1e-9),
    }


def result_of(
    config: TrainConfig, position: Position, history: Sequence[dict[str, Any]]
) -> StageResult:
    """The result of a stage that stands at `position`."""
    num_steps = position.epoch * config.steps_per_epoch + position.step
    num_images, seconds = num_steps * config.images_per_step, position.seconds
    last = history[-1] if history else {"losses": {}, "held_out": {}}
    return StageResult(
        stage=config.stage,
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
    """That the stage is done; and if it waited much for its images, that it did, and what helps."""
    if result.waiting_share > _LONG_WAIT and result.waiting_share * result.seconds > _LONG_WAIT_S:
        yield Notice(
            topic="data",
            message=f"{result.stage} waited for its images for {result.waiting_share:.0%} of its"
            f" time: more --workers (now {num_workers}) prepare them beside the training",
        )
    detail = {name: getattr(result, name) for name in ("losses", "held_out", "waiting_share")}
    yield StageFinished(
        stage=result.stage, seconds=result.seconds, num_images=result.num_images, detail=detail
    )


_LONG_WAIT, _LONG_WAIT_S = 0.2, 5.0
"""The share of waiting, and the seconds of it, from which it is worth a word."""
