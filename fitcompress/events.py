"""Progress events.

The library prints nothing. Each long-running function takes a callback `emit: Emit` and calls it
with the events below; the console draws them, the run directory appends them to `events.jsonl`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "Emit",
    "EpochFinished",
    "Event",
    "Notice",
    "Progress",
    "StageFinished",
    "StageStarted",
    "event_record",
    "ignore",
]


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base class of events."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """A choice made for the user or a degraded path; shown in the report."""

    topic: str
    """One of "data", "teacher", "plan", "hint", "training", "export", "run"."""
    message: str
    code: str = ""
    """A stable slug such as "augmentation-off", for scripts and tests."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A stage begins: "teacher", "stage1", "stage2", "baseline", or one without epochs such as
    "export onnx".
    """

    stage: str
    num_epochs: int = 0
    num_steps_per_epoch: int = 0
    first_epoch: int = 0
    """Number of epochs completed before the run was resumed."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A training step is done. Sent at most a few times per second; never stored."""

    stage: str
    epoch: int
    step: int
    num_images: int
    """Images that this process has seen in this stage."""
    images_per_s: float
    seconds_left: float
    losses: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EpochFinished(Event):
    """An epoch is done and its checkpoint is on disk."""

    stage: str
    epoch: int
    """Counted from 1."""
    losses: dict[str, float]
    """Means over the epoch by name ("loss", "hint", "kd", "ce", "lambda_kd", "lr")."""
    held_out: dict[str, float]
    """On the held-out tenth of the training images: "loss", and "top1" (0 to 1) if labelled."""
    seconds: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """A stage is done."""

    stage: str
    seconds: float
    num_images: int
    detail: dict[str, Any]


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Discards an event: the default callback."""


def event_record(event: Event) -> dict[str, Any]:
    """The event as a dictionary ready for JSON, with its class name under "event"."""
    return {"event": type(event).__name__, **asdict(event)}
