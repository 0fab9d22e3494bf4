"""Fine-tuning a timm model, to use it as a teacher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fitcompress.events import Emit, ignore
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_to_toml
from fitcompress.run.adapt import adapt_teacher
from fitcompress.run.autotune import as_chosen, tuned
from fitcompress.run.event_log import record_events
from fitcompress.run.prepare import load_images
from fitcompress.run.session import Session, on_its_threads, resolve_training
from fitcompress.rundir import RunDir

__all__ = ["train_teacher"]


@on_its_threads
def train_teacher(model: str, recipe: Recipe, *, resume: bool = False, emit: Emit = ignore) -> Path:
    """The model folder `recipe.run.out`: a timm model fine-tuned on the recipe's data.

    Below it, `training/` keeps the recipe, the events and the last checkpoint, from which `resume`
    goes on.
    """
    folder = Path(recipe.run.out or "teachers/teacher")
    run = RunDir.create(folder / "training", force=not resume, resume=resume)
    emit = record_events(run, recipe, emit)
    data = load_images(recipe, emit)
    source = replace(recipe.teacher, source=model)
    recipe = resolve_training(replace(recipe, teacher=source), data)
    if run.is_run():
        recipe = as_chosen(recipe, load_recipe(run.recipe_path))
    run.write_text("recipe.toml", recipe_to_toml(recipe))
    teacher = open_teacher(
        source,
        image_size=data.image_size,
        num_classes=data.num_classes,
        emit=emit,
        allow_random=True,
        seed=recipe.run.seed,
    )
    session = tuned(Session(recipe, data, emit, run, resume), teacher)
    run.write_text("recipe.toml", recipe_to_toml(session.recipe))
    adapt_teacher(session, teacher, folder)
    return folder
