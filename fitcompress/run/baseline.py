"""The baseline: the student trained without a teacher."""

from __future__ import annotations

from fitcompress.events import Notice
from fitcompress.models.model import Model
from fitcompress.run.estimate import stage_cost
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage, supervised_objective
from fitcompress.student.planner import Planned, make_baseline
from fitcompress.training.stage_result import StageResult

__all__ = ["train_baseline"]


def train_baseline(session: Session, planned: Planned) -> tuple[Model, StageResult]:
    """The student trained from random weights on labels alone, for the epochs of both stages."""
    recipe, model = session.recipe, make_baseline(planned, session.recipe.run.seed)
    if recipe.student.init == "inherit" and planned.plan is not None:
        message = "the baseline starts from random weights: inherited ones are the teacher's"
        session.emit(Notice(topic="training", code="baseline-from-scratch", message=message))
    spec = model.interface.images
    objective, fingerprint = supervised_objective(session, model), planned.teacher_fingerprint
    epochs = (recipe.stage1.epochs or 0) + (recipe.stage2.epochs or 0)
    optim, cost = recipe.stage2.optim, stage_cost(None, model)
    result = run_stage(session, "baseline", objective, spec, optim, epochs, fingerprint, cost)
    return model, result
