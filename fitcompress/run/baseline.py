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
        message = "the baseline starts from random weights, not from the teacher's"
        session.emit(Notice(topic="training", code="baseline-from-scratch", message=message))
    result = run_stage(
        session,
        "baseline",
        supervised_objective(session, model),
        spec=model.interface.images,
        optim=recipe.stage2.optim,
        epochs=(recipe.stage1.epochs or 0) + (recipe.stage2.epochs or 0),
        subject=planned.teacher_fingerprint,
        cost=stage_cost(None, model),
    )
    return model, result
