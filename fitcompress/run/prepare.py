"""The images and the teacher of a run, matched to each other."""

from __future__ import annotations

from dataclasses import dataclass

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.data.class_order import match_classes
from fitcompress.environment import collect_environment
from fitcompress.errors import TeacherError
from fitcompress.events import Emit, Notice
from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_to_toml
from fitcompress.run.adapt import adapt_teacher, require_adaptable
from fitcompress.run.resolve import keep_measured, resolve_teacher_form, resolve_training
from fitcompress.run.session import ResolvedRecipe, Session
from fitcompress.rundir import RunDir
from fitcompress.training.device import resolve_device
from fitcompress.training.stage_result import StageResult

__all__ = ["Prepared", "claim_run", "load_images", "prepare_run"]


@dataclass(frozen=True)
class Prepared:
    """What a student is planned from and trained on."""

    recipe: ResolvedRecipe
    data: DataBundle
    """With labels in the order of the teacher's classes."""
    teacher: Teacher
    """A fine-tuned copy if its classes were not those of the data."""
    adaptation: StageResult | None
    """The cost of that fine-tuning."""


def prepare_run(
    recipe: Recipe, run: RunDir, teacher: Teacher | None, emit: Emit, *, resume: bool = False
) -> Prepared:
    """Loads the images, opens the teacher (unless given) and adapts it if necessary; resolves what
    the recipe leaves to them.

    Raises:
        FitcompressError: the images or the teacher cannot be used, or do not match.
        Interrupted: a signal stopped the adaptation of the teacher.
    """
    data = load_images(recipe, emit)
    claimed = claim_run(recipe, data, run, resume=resume)
    _explain_missing_hints(claimed, recipe, emit)
    run.write_json("environment.json", collect_environment(resolve_device(recipe.run.device)))
    described = teacher or open_teacher(recipe.teacher, image_size=data.image_size, meta=True)
    _require_images(described)
    data = _in_teacher_order(data, described, has_class_map=recipe.teacher.class_map is not None)
    fits = not data.is_labeled or described.num_classes in (0, data.num_classes)
    if not fits:
        require_adaptable(described, data, recipe)
    opened = teacher or open_teacher(
        recipe.teacher,
        image_size=data.image_size,
        num_classes=None if fits else data.num_classes,
        emit=emit,
        allow_random=not fits and recipe.teacher.weights is None,
        seed=recipe.run.seed,
    )
    resolved = resolve_teacher_form(claimed, data, opened, emit)
    if fits:
        return Prepared(resolved, data, opened, None)
    message = (
        f"the teacher has {described.num_classes} classes, the data {data.num_classes}: a copy of"
        " the teacher is fine-tuned first"
    )
    emit(Notice(topic="teacher", code="teacher-adapted", message=message))
    session = Session.start(resolved, data, run, emit, resume=resume)
    adapted, result = adapt_teacher(session, opened, run.teacher_path)
    return Prepared(resolved, data, adapted, result)


def load_images(recipe: Recipe, emit: Emit) -> DataBundle:
    """The images of the recipe, announced."""
    if recipe.data.source == "builtin":
        message = "no --data given: using the built-in images (a sample of Fashion-MNIST)"
        emit(Notice(topic="data", code="builtin-data", message=message))
    data = load_data(recipe.data, seed=recipe.run.seed, emit=emit)
    emit(Notice(topic="data", code="data-loaded", message=data.description))
    return data


def claim_run(recipe: Recipe, data: DataBundle, run: RunDir, *, resume: bool) -> Recipe:
    """The recipe of `resolve_training`, with the measured choices of a resumed run."""
    resolved = resolve_training(recipe, data)
    if resume and run.is_run():
        resolved = keep_measured(resolved, load_recipe(run.recipe_path))
    # Only a directory with this file is a run that can be resumed, so it is written before the
    # teacher is opened and measured; `Session.start` writes it again with the measured choices.
    run.write_text("recipe.toml", recipe_to_toml(resolved))
    return resolved


def _explain_missing_hints(resolved: Recipe, requested: Recipe, emit: Emit) -> None:
    """Notices where a user may expect hint training, and there is none."""
    hints = requested.hints
    if resolved.learns_hints:
        return
    if hints.hint or hints.guided or hints.num_pairs > 1:
        message = "the named hint layers are not used: stage 1 has no epochs (--hint-epochs)"
        emit(Notice(topic="training", code="hints-without-epochs", message=message))
    elif requested.stage1.epochs is None and resolved.stage2.epochs:
        message = (
            "no hint training (stage 1): the student starts from the teacher's weights, and hints"
            " did not improve such students in our experiments; --hint-epochs N turns it on"
        )
        emit(Notice(topic="training", code="no-hint-training", message=message))


def _require_images(teacher: Teacher) -> None:
    if teacher.interface.input is None:
        inputs = " and ".join(map(str, teacher.interface.inputs))
        raise TeacherError(
            f"distilling '{teacher.name}': expected a teacher that takes images, got one"
            f" that takes {inputs}",
            code="teacher-without-images",
            advice="Only `fitcompress plan` and `fitcompress inspect` support such a teacher.",
            teacher=teacher.name,
            inputs=list(map(str, teacher.interface.inputs)),
        )


def _in_teacher_order(data: DataBundle, teacher: Teacher, *, has_class_map: bool) -> DataBundle:
    """The data with labels in the order of the teacher's outputs, if both name their classes."""
    names = teacher.interface.class_names
    if has_class_map or set(data.class_names or ()) <= set(names):
        return match_classes(data, names)
    return data
