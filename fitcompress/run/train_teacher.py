"""Fine-tunes a timm model for use as a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fitcompress.events import Emit, ignore
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import Recipe
from fitcompress.run.adapt import adapt_teacher
from fitcompress.run.event_log import record_events
from fitcompress.run.prepare import claim_run, load_images
from fitcompress.run.resolve import resolve_teacher_form
from fitcompress.run.session import Session
from fitcompress.rundir import RunDir
from fitcompress.training.device import used_threads

__all__ = ["train_teacher"]


def train_teacher(model: str, recipe: Recipe, *, resume: bool = False, emit: Emit = ignore) -> Path:
    """Fine-tunes a timm model on the recipe's data and returns its model folder, `recipe.run.out`.

    The folder `training/` in it holds the recipe, the events and the last checkpoint, from which
    `resume` continues.
    """
    with used_threads(recipe.run.threads):
        folder = Path(recipe.run.out or "teachers/teacher")
        run = RunDir.create(folder / "training", force=not resume, resume=resume)
        emit = record_events(run, recipe, emit)
        data = load_images(recipe, emit)
        named = replace(recipe, teacher=replace(recipe.teacher, source=model))
        claimed = claim_run(named, data, run, resume=resume)
        teacher = open_teacher(
            named.teacher,
            image_size=data.image_size,
            num_classes=data.num_classes,
            emit=emit,
            allow_random=True,
            seed=recipe.run.seed,
        )
        resolved = resolve_teacher_form(claimed, data, teacher, emit)
        adapt_teacher(Session.start(resolved, data, run, emit, resume=resume), teacher, folder)
        return folder
