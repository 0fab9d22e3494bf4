"""The baseline: the same student, trained without a teacher."""

from __future__ import annotations

from fitcompress.events import Notice
from fitcompress.models.model import Model
from fitcompress.run.estimate import stage_cost
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage, supervised_objective
from fitcompress.student.planner import Planned, untaught
from fitcompress.training.stage_result import StageResult

__all__ = ["train_baseline"]


def train_baseline(
    session: Session, planned: Planned, fingerprint: str
) -> tuple[Model, StageResult]:
    """The same student from random weights without a teacher, for the steps of both stages
    together.
    """
    model = untaught(planned, session.recipe.run.seed)
    if session.recipe.student.init == "inherit" and planned.plan is not None:
        message = "the baseline starts from random weights: inherited ones are the teacher's"
        session.emit(Notice(topic="training", message=message))
    spec = model.interface.images
    objective, recipe = supervised_objective(session, model), session.recipe
    epochs = (recipe.stage1.epochs or 0) + (recipe.stage2.epochs or 0)
    optim, cost = recipe.stage2.optim, stage_cost(None, model)
    result = run_stage(session, "baseline", objective, spec, optim, epochs, fingerprint, cost)
    return model, result
