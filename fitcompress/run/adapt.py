"""Fine-tunes a copy of the teacher whose classes are not those of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fitcompress.data.bundle import DataBundle
from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.objectives import SupervisedObjective
from fitcompress.errors import TeacherError
from fitcompress.models.model import make_model, save_model, with_state
from fitcompress.models.teacher import Teacher, fingerprint_of
from fitcompress.ranks import is_first_process
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.run.estimate import estimate_adaptation, stage_cost
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage
from fitcompress.training.stage_result import StageResult

__all__ = ["adapt_teacher", "require_adaptable"]

_PRETRAINED_LR, _RANDOM_LR = 3e-4, 1e-3
"""AdamW's usual rates for fine-tuning and for training from random weights."""


def adapt_teacher(session: Session, teacher: Teacher, folder: Path) -> tuple[Teacher, StageResult]:
    """A copy of the teacher, fine-tuned on the data and saved as the model folder `folder`."""
    interface = replace(teacher.interface, class_names=session.data.class_names or ())
    model = make_model(teacher.program, interface)
    spec = interface.images
    objective = SupervisedObjective(model.network, student_preprocess=Preprocess(spec))
    default_lr = _RANDOM_LR if teacher.weights_from == "random" else _PRETRAINED_LR
    epochs = session.recipe.teacher.epochs or 0
    session.emit(estimate_adaptation(session, model, epochs))
    result = run_stage(
        session,
        "teacher",
        objective,
        spec=spec,
        optim=OptimRecipe(lr=session.recipe.teacher.lr or default_lr),
        epochs=epochs,
        subject=teacher.fingerprint,
        cost=stage_cost(None, model),
    )
    program = with_state(model, model.network)
    if is_first_process():
        save_model(folder, program, {}, interface, model.blocks)
    fingerprint = fingerprint_of(program)
    adapted = replace(teacher, program=program, interface=interface, fingerprint=fingerprint)
    return adapted, result


def require_adaptable(teacher: Teacher, data: DataBundle, recipe: Recipe) -> None:
    """Refuses a teacher with other classes than the data that cannot, or must not, be adapted.

    Raises:
        TeacherError: the teacher keeps its classes.
    """
    if recipe.teacher.adapt and teacher.can_resize_classes:
        return
    reason = (
        "adapting is turned off (--no-adapt)"
        if teacher.can_resize_classes
        else "the head of this kind of teacher cannot be replaced"
    )
    raise TeacherError(
        f"adapting teacher '{teacher.name}': expected {data.num_classes} classes as in the data,"
        f" got {teacher.num_classes}; {reason}",
        code="class-count-mismatch",
        advice="Use data with the teacher's classes, or pass a timm model or a factory without"
        " --no-adapt.",
        teacher=teacher.name,
        expected=data.num_classes,
        got=teacher.num_classes,
    )
