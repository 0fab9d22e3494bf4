"""Where the events of a run go: its directory, trackers, and whoever listens."""

from __future__ import annotations

from fitcompress.events import Emit, Event, Progress, ignore
from fitcompress.ranks import is_first_process
from fitcompress.recipe.fields import flat_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.run.trackers import tracked
from fitcompress.rundir import RunDir


def record_events(run: RunDir, recipe: Recipe, emit: Emit) -> Emit:
    """Passes events on, keeps all but progress in the run directory, and logs them where the recipe
    says; of several processes the first one speaks.
    """
    if not is_first_process():
        return ignore
    emit = tracked(recipe.run.log, run.path, flat_settings(recipe), emit)

    def record(event: Event) -> None:
        if not isinstance(event, Progress):
            run.append_event(event)
        emit(event)

    return record
