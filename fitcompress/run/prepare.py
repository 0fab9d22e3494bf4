"""Data and teacher of a run, ready for each other. Layer: pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.data.class_order import match_classes
from fitcompress.environment import collect_environment
from fitcompress.errors import TeacherError
from fitcompress.events import Emit, Notice
from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_to_toml
from fitcompress.run.adapt import adapt_teacher, require_adaptable
from fitcompress.run.autotune import as_chosen, tuned
from fitcompress.run.session import Session, resolve_training
from fitcompress.rundir import RunDir
from fitcompress.training.device import resolve_device
from fitcompress.training.stage_result import StageResult

__all__ = ["Prepared", "load_images", "prepare_teacher"]


@dataclass(frozen=True)
class Prepared:
    """Data and teacher, ready for each other."""

    session: Session
    teacher: Teacher
    """Adapted where its classes are not the data's."""
    facts: dict[str, Any]
    """What the report must say of it."""
    stages: tuple[StageResult, ...]
    """What adapting it cost."""


def prepare_teacher(
    recipe: Recipe, run: RunDir, teacher: Teacher | None, emit: Emit, *, resume: bool = False
) -> Prepared:
    """The recipe with all decided that data and teacher decide, and both of them.

    Raises:
        FitcompressError: one cannot be read, or they do not fit each other.
        Interrupted: stopped by a signal, while the teacher was adapted.
    """
    data = load_images(recipe, emit)
    told, recipe = recipe, resolve_training(recipe, data)
    if resume and run.recipe_path.is_file():
        recipe = as_chosen(recipe, load_recipe(run.recipe_path))
    if not recipe.learns_hints and (message := _why_no_hints(recipe, told.stage1.epochs)):
        emit(Notice(topic="training", message=message))
    run.write_text("recipe.toml", recipe_to_toml(recipe))
    session = Session(recipe, data, emit, run, resume)
    run.write_json("environment.json", collect_environment(resolve_device(recipe.run.device)))
    return _prepared(session, teacher)


def _why_no_hints(recipe: Recipe, told: int | None) -> str:
    """Where one would expect them; `told` are the epochs of stage 1 that were asked for."""
    hints = recipe.hints
    if hints.hint or hints.guided or hints.num_pairs > 1:
        return "a hint is named, but not learnt: stage 1 has no epochs (--hint-epochs)"
    if told is not None or not recipe.stage2.epochs:
        return ""
    return (
        "no hint training (stage 1): the student begins with the teacher's weights, and hints"
        " were not seen to better such a student; --hint-epochs N trains on them"
    )


def load_images(recipe: Recipe, emit: Emit) -> DataBundle:
    """The images of the recipe, with a word on what they are."""
    if recipe.data.source == "builtin":
        emit(
            Notice(
                topic="data",
                message="no --data given: using the built-in images (Fashion-MNIST, a sample)",
            )
        )
    data = load_data(recipe.data, seed=recipe.run.seed, emit=emit)
    emit(Notice(topic="data", message=data.description))
    return data


def _prepared(session: Session, teacher: Teacher | None) -> Prepared:
    """The teacher for the data, and the data in the order of its classes."""
    recipe, emit = session.recipe, session.emit
    known = teacher or open_teacher(recipe.teacher, image_size=session.data.image_size, meta=True)
    _require_images(known)
    data = _in_order_of(known, session.data, is_told=recipe.teacher.class_map is not None)
    fits = not data.labelled or known.num_classes in (0, data.num_classes)
    if not fits:
        require_adaptable(known, data, recipe)
    opened = teacher or open_teacher(
        recipe.teacher,
        image_size=data.image_size,
        num_classes=None if fits else data.num_classes,
        emit=emit,
        allow_random=not fits and recipe.teacher.weights is None,
        seed=recipe.run.seed,
    )
    facts = {
        "teacher_weights": opened.weights_from,
        "adapted": not fits,
        "evaluation_split": data.evaluation_split,
    }
    session = tuned(replace(session, data=data), opened)
    session.run.write_text("recipe.toml", recipe_to_toml(session.recipe))
    if fits:
        return Prepared(session, opened, facts, ())
    message = f"the teacher has {known.num_classes} classes, the data {data.num_classes}"
    emit(Notice(topic="teacher", message=f"{message}: a copy is adapted first"))
    adapted, result = adapt_teacher(session, opened, session.run.teacher_path)
    return Prepared(session, adapted, facts, (result,))


def _require_images(teacher: Teacher) -> None:
    if teacher.interface.input is None:
        inputs = " and ".join(map(str, teacher.interface.inputs))
        raise TeacherError(
            f"distilling '{teacher.name}': a teacher is trained from on images, and it takes"
            f" {inputs}",
            advice="`fitcompress plan` and `fitcompress inspect` work for it.",
        )


def _in_order_of(teacher: Teacher, data: DataBundle, *, is_told: bool) -> DataBundle:
    """The data with labels in the order of the teacher's outputs, where both sides have names."""
    names = teacher.interface.class_names
    if is_told or set(data.class_names or ()) <= set(names):
        return match_classes(data, names)
    return data
