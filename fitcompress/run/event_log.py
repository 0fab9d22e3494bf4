"""Records the events of a run: in its directory, and in an experiment tracker."""

from __future__ import annotations

from fitcompress.events import Emit, Event, Progress, ignore
from fitcompress.ranks import is_first_process
from fitcompress.recipe.fields import flat_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.run.trackers import log_to_tracker
from fitcompress.rundir import RunDir

__all__ = ["record_events"]


def record_events(run: RunDir, recipe: Recipe, emit: Emit) -> Emit:
    """A listener that appends events, except for progress, to `events.jsonl`, logs them to the
    tracker `recipe.run.log`, and passes them on to `emit`.

    With several processes only the first one's events are recorded.
    """
    if not is_first_process():
        return ignore
    emit = log_to_tracker(recipe.run.log, run.path, flat_settings(recipe), emit)

    def record(event: Event) -> None:
        if not isinstance(event, Progress):
            run.append_event(event)
        emit(event)

    return record
