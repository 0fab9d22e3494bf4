"""Stage 2, knowledge distillation: the whole student learns the teacher's outputs."""

from __future__ import annotations

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.hint_objectives import JointObjective
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.distillation.partial_networks import cut_at
from fitcompress.models.model import output_kinds
from fitcompress.run.estimate import stage_cost
from fitcompress.run.hints import frozen_network, prepare_hints
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage, supervised_objective, view_spec
from fitcompress.student.planner import Planned
from fitcompress.training.protocols import Objective
from fitcompress.training.stage_result import StageResult

__all__ = ["train_student"]


def train_student(session: Session, planned: Planned) -> StageResult:
    """Runs stage 2; trains the student's network in place.

    With `hint_weight` the hints are learned in this stage too; with no weight for the teacher, only
    the labels.
    """
    teacher, student = planned.teacher, planned.student
    recipe = session.recipe.stage2
    objective: Objective
    if not recipe.has_teacher and "values" not in output_kinds(teacher):
        objective = supervised_objective(session, student, recipe.label_weight)
        subject, cost = planned.teacher_fingerprint, stage_cost(None, student)
    else:
        objective, subject = _distill_objective(session, planned)
        cost = stage_cost(teacher, student)
    return run_stage(
        session,
        "stage2",
        objective,
        spec=view_spec(teacher, student),
        optim=recipe.optim,
        epochs=recipe.epochs or 0,
        subject=subject,
        cost=cost,
    )


def _distill_objective(session: Session, planned: Planned) -> tuple[Objective, str]:
    """The distillation objective, joined with hints if they have a weight, and what it depends on
    besides the recipe.
    """
    teacher, student = planned.teacher, planned.student
    recipe, subject = session.recipe.stage2, planned.teacher_fingerprint
    learns_hints = bool(recipe.hint_weight)
    hint_nodes = planned.hint_nodes if learns_hints else []
    distilling = DistillObjective(
        frozen_network(session, teacher, hint_nodes, with_output=True),
        cut_at(student, planned.guided_nodes, with_output=True)
        if learns_hints
        else student.network,
        recipe,
        teacher_preprocess=Preprocess(teacher.interface.images),
        student_preprocess=Preprocess(student.interface.images),
        output_kinds=output_kinds(teacher),
        is_labeled=session.data.is_labeled,
    )
    if not learns_hints:
        return distilling, subject
    student.network.to(session.device)
    hinting = prepare_hints(session, planned)
    joint = JointObjective(
        distilling, hinting.matcher, weight=recipe.hint_weight, targets=hinting.targets
    )
    return joint, f"{subject} {hinting.subject} and outputs"
