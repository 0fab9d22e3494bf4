"""Logs losses and scores to an experiment tracker, through Accelerate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitcompress.errors import RunError
from fitcompress.events import Emit, EpochFinished, Event, Progress

__all__ = ["log_to_tracker"]


def log_to_tracker(tool: str, folder: Path, settings: Mapping[str, Any], emit: Emit) -> Emit:
    """A listener that logs losses, learning rates and held-out scores, and passes events on to
    `emit`.

    Values are named by stage: "stage2/loss" after each epoch, "stage2/step/loss" a few times a
    second.

    Args:
        tool: "tensorboard", "wandb", "trackio", or "none" for no logging.
        folder: the run directory; its name is the tracker's name of the run. TensorBoard writes to
            its `logs/`.
        settings: stored with the tracked run.

    Raises:
        RunError: the tracker is not installed or does not start.
    """
    if tool == "none":
        return emit
    tracker = _start(tool, folder, settings)

    def log(event: Event) -> None:
        if isinstance(event, EpochFinished):
            held_out = {f"held_out/{name}": value for name, value in event.held_out.items()}
            values = {**event.losses, **held_out, "images_per_s": event.images_per_s}
            tracker.log({f"{event.stage}/{k}": v for k, v in values.items()}, step=event.epoch)
        elif isinstance(event, Progress):
            losses = {f"{event.stage}/step/{name}": value for name, value in event.losses.items()}
            tracker.log(losses, step=event.num_images)
        emit(event)

    return log


def _start(tool: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[tool]
    options = {"logging_dir": str(folder / "logs")} if kind.requires_logging_directory else {}
    try:
        tracker = kind(folder.resolve().name, **options)
        tracker.start()
        values = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        tracker.store_init_configuration(values)
    except ModuleNotFoundError as error:
        raise RunError(
            f"logging to {tool}: {error}",
            code="tracker-not-installed",
            advice=f"Install it with `pip install {tool}`.",
            tool=tool,
        ) from error
    except Exception as error:  # trackers raise errors of any type, from servers and clients
        raise RunError(
            f"logging to {tool}: {type(error).__name__}: {error}",
            code="tracker-failed",
            tool=tool,
        ) from error
    return tracker
