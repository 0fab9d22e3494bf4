"""Progress as values: what the library tells whoever listens. Lowest layer: standard library only.

The library prints nothing. Each long-running function takes an `emit: Emit` and calls it with the
events below; the console draws them, the run directory appends them to `events.jsonl`.
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
    """What every event is."""


@dataclass(frozen=True, kw_only=True)
class Notice(Event):
    """What the user should know and the report says: a degraded path, a choice made for them."""

    topic: str
    """One of "data", "teacher", "plan", "hint", "training", "export", "run"."""
    message: str
    code: str = ""
    """A stable slug such as "augmentation-off", for scripts and tests."""


@dataclass(frozen=True, kw_only=True)
class StageStarted(Event):
    """A part of the work begins: "teacher", "stage1", "stage2", "baseline", or one without epochs
    such as "export".
    """

    stage: str
    num_epochs: int = 0
    num_steps_per_epoch: int = 0
    first_epoch: int = 0
    """Epochs already done, when a run resumes."""


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """A step of training was made. Sent a few times a second at most; never stored."""

    stage: str
    epoch: int
    step: int
    num_images: int
    """Images seen in this stage by this process so far."""
    images_per_s: float
    seconds_left: float
    losses: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class EpochFinished(Event):
    """An epoch is done and its checkpoint is written."""

    stage: str
    epoch: int
    """Counted from 1."""
    losses: dict[str, float]
    """Means over the epoch, by name ("loss", "hint", "kd", "ce", "lambda_kd", "lr")."""
    held_out: dict[str, float]
    """On the held-out tenth of the training images: "loss", and "top1" (0..1) where labelled."""
    seconds: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True)
class StageFinished(Event):
    """A part of the work is done."""

    stage: str
    seconds: float
    num_images: int
    detail: dict[str, Any]


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The listener for those who want no progress."""


def event_record(event: Event) -> dict[str, Any]:
    """The event as a JSON-ready dictionary, its class name under "event"."""
    return {"event": type(event).__name__, **asdict(event)}
