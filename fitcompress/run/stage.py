"""Running a stage: one call of the training engine with the settings of the recipe."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.hint_objectives import HintObjective, JointObjective
from fitcompress.distillation.objectives import DistillObjective, SupervisedObjective
from fitcompress.errors import DataError
from fitcompress.interface import InputSpec
from fitcompress.models.model import Model, output_kinds
from fitcompress.recipe.fields import flat_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.run.cache_policy import TeacherCache
from fitcompress.run.estimate import StageCost
from fitcompress.run.session import Session
from fitcompress.training.engine import train
from fitcompress.training.protocols import Objective
from fitcompress.training.stage_result import StageResult
from fitcompress.training.train_config import Runtime, TrainConfig

_FREE = {
    "run.out",
    "run.device",
    "run.baseline",
    "run.compile",
    "run.threads",
    "run.log",
    "run.timing",
    "run.cache_teacher",
    "data.num_workers",
    "teacher.source",
    "teacher.weights",
}
"""Settings that may change when a stage is resumed: they affect results by rounding at most. The
fingerprint identifies the teacher."""


def run_stage(
    session: Session,
    stage: str,
    objective: Objective,
    *,
    spec: InputSpec,
    optim: OptimRecipe,
    epochs: int,
    subject: str,
    cost: StageCost,
) -> StageResult:
    """Trains one stage with the session's settings.

    Args:
        spec: the size of the views.
        subject: identifies what the stage depends on besides the recipe: the teacher and its
            layers. A checkpoint of another subject is not resumed.
    """
    data, recipe = session.views(spec), session.recipe
    if (
        isinstance(objective, HintObjective | DistillObjective | JointObjective)
        and objective.needs_teacher
    ):
        cache = TeacherCache(stage, recipe, session.run, session.device, session.emit, subject)
        for views, split in zip(data, ("train", "held out"), strict=True):
            cache.attach(objective, views, split, epochs)
    config = TrainConfig(
        stage=stage,
        optim=optim,
        epochs=epochs,
        batch_size=recipe.data.batch_size,
        seed=recipe.run.seed,
        checkpoint_path=session.run.checkpoint_path(stage),
        accumulate=recipe.data.accumulate,
        auto_batch=recipe.run.auto_batch,
        recipe_hash=_recipe_hash(recipe, subject),
    )
    runtime = Runtime(
        device=recipe.run.device,
        precision=recipe.run.precision,
        layout=recipe.run.layout,
        compile=recipe.run.compile == "on",
        num_workers=recipe.data.num_workers,
        shard=recipe.run.shard,
    )
    result = train(objective, data, config, runtime, emit=session.emit, resume=session.resume)
    return replace(result, flops_per_image=cost.step_flops)


def _recipe_hash(recipe: Recipe, subject: str) -> str:
    settings = {name: value for name, value in flat_settings(recipe).items() if name not in _FREE}
    return hashlib.sha256(repr((sorted(settings.items()), subject)).encode()).hexdigest()


def view_spec(teacher: Model, student: Model) -> InputSpec:
    """Both networks see one view, of the larger of their sizes; each resizes it to its own."""
    specs = (teacher.interface.images, student.interface.images)
    return max(specs, key=lambda spec: spec.shape)


def supervised_objective(
    session: Session, model: Model, weight: float = 1.0
) -> SupervisedObjective:
    """Labels alone.

    Raises:
        DataError: not all images have one.
    """
    if not session.data.is_labeled:
        raise DataError(
            "training on labels alone: not all images have a label",
            code="labels-missing",
            advice="Use labeled images, or set stage2.lambda_kd above 0 to learn from the teacher.",
        )
    return SupervisedObjective(
        model.network,
        session.recipe.stage2.label_smoothing,
        student_preprocess=Preprocess(model.interface.images),
        output_kind=output_kinds(model)[0],
        weight=weight,
    )
