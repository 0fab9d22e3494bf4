"""What a run tells, also told to an experiment tracker as it happens. Layer: events, Accelerate's
trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitcompress.errors import RunError
from fitcompress.events import Emit, EpochFinished, Event, Progress

__all__ = ["tracked"]


def tracked(tool: str, folder: Path, settings: Mapping[str, Any], emit: Emit) -> Emit:
    """A listener that passes events on and logs losses, rates and held-out scores to a tracker, by
    stage: "stage2/loss" and so on, after each epoch, and "stage2/step/loss" a few times a second.

    tool: "tensorboard", "wandb" or "trackio"; "none" logs nothing.
    folder: the run's directory; its name is the tracker's name of the run, and TensorBoard's files
        lie in its `logs/`.

    Raises:
        RunError: the tracker is not installed, or does not start.
    """
    if tool == "none":
        return emit
    tracker = _started(tool, folder, settings)

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


def _started(tool: str, folder: Path, settings: Mapping[str, Any]) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    kind = LOGGER_TYPE_TO_CLASS[tool]
    where = {"logging_dir": str(folder / "logs")} if kind.requires_logging_directory else {}
    try:
        tracker = kind(folder.resolve().name, **where)
        tracker.start()
        values = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        tracker.store_init_configuration(values)
    except ModuleNotFoundError as error:
        raise RunError(
            f"logging to {tool}: {error}", advice=f"Install it: pip install {tool}."
        ) from error
    except Exception as error:  # trackers raise whatever their servers and clients raise
        raise RunError(f"logging to {tool}: {type(error).__name__}: {error}") from error
    return tracker
