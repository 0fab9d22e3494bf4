"""The recipe of a run, with every value that the request leaves open.

A request (`Recipe`) may leave epochs, learning rates, the teacher's precision and layout, and
compiling open. The first two follow from the data, the others are measured, once: a resumed run
keeps the stored choices, so that it computes the same bits.
"""

from __future__ import annotations

from dataclasses import replace

from fitcompress.data.bundle import DataBundle
from fitcompress.events import Emit
from fitcompress.models.model import Model
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe
from fitcompress.run.autotune import choose_teacher_form, is_compiling_worthwhile
from fitcompress.run.session import ResolvedRecipe
from fitcompress.training.device import resolve_device

__all__ = ["keep_measured", "resolve_compile", "resolve_teacher_form", "resolve_training"]

_SAMPLES_ON_CPU, _SAMPLES_ON_GPU = 45_000, 1_500_000
"""Images seen in stage 2 by default: a quarter of an hour for a small network on two cores, about
an hour on a GPU."""
_MIN_EPOCHS, _MAX_EPOCHS = 3, 100
_INHERITED_STAGE1_LR = 3e-4
"""For a student that starts from the teacher's weights."""
_STAGE1_SHARE = 0.15
"""Epochs of stage 1 per epoch of stage 2, if the student starts with hint training."""
_MEASURED = ("teacher_precision", "teacher_layout", "compile")


def resolve_training(recipe: Recipe, data: DataBundle) -> Recipe:
    """The recipe with the epochs of every stage, and the learning rate of stage 1."""
    samples = _SAMPLES_ON_CPU if resolve_device(recipe.run.device) == "cpu" else _SAMPLES_ON_GPU
    default = min(_MAX_EPOCHS, max(_MIN_EPOCHS, round(samples / max(1, len(data.train)))))
    stage2 = default if recipe.stage2.epochs is None else recipe.stage2.epochs
    stage1 = recipe.stage1.epochs
    if stage1 is None:
        stage1 = (
            max(1, round(_STAGE1_SHARE * stage2))
            if stage2 and recipe.trains_hints_by_default
            else 0
        )
    optim = recipe.stage1.optim
    if optim.lr is None:
        inherits = recipe.student.inherits_weights
        optim = replace(optim, lr=_INHERITED_STAGE1_LR if inherits else recipe.stage2.optim.lr)
    teacher = default if recipe.teacher.epochs is None else recipe.teacher.epochs
    return replace(
        recipe,
        teacher=replace(recipe.teacher, epochs=teacher),
        stage1=replace(recipe.stage1, epochs=stage1, optim=optim),
        stage2=replace(recipe.stage2, epochs=stage2),
    )


def keep_measured(recipe: Recipe, stored: Recipe) -> Recipe:
    """The recipe with the measured choices of the run that it resumes, for what it leaves open."""
    requested = recipe.run
    kept = {
        name: getattr(stored.run, name) for name in _MEASURED if getattr(requested, name) == "auto"
    }
    return replace(recipe, run=replace(requested, **kept))


def resolve_teacher_form(
    recipe: Recipe, data: DataBundle, teacher: Teacher, emit: Emit
) -> ResolvedRecipe:
    """The recipe of `resolve_training` with the teacher's precision and memory layout."""
    form = choose_teacher_form(recipe, data, teacher, emit)
    run = replace(recipe.run, teacher_precision=form.precision, teacher_layout=form.layout)
    return ResolvedRecipe(replace(recipe, run=run))


def resolve_compile(
    recipe: ResolvedRecipe, data: DataBundle, student: Model, seconds: float | None, emit: Emit
) -> ResolvedRecipe:
    """The recipe with the choice whether to compile.

    seconds: how long training takes; left open if unknown.
    """
    if recipe.run.compile != "auto" or not seconds:
        return recipe
    compiles = is_compiling_worthwhile(recipe, data, student, seconds, emit)
    run = replace(recipe.run, compile="on" if compiles else "off")
    return ResolvedRecipe(replace(recipe, run=run))
