"""Stage 2: knowledge distillation of the whole student."""

from __future__ import annotations

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.hint_objectives import JointObjective
from fitcompress.distillation.objectives import DistillObjective
from fitcompress.distillation.partial_networks import cut_at
from fitcompress.models.model import output_kinds
from fitcompress.run.estimate import stage_cost
from fitcompress.run.hints import frozen, prepare_hints
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage, supervised_objective, view_spec
from fitcompress.run.stage1 import pair_nodes
from fitcompress.student.planner import Planned
from fitcompress.training.protocols import Objective
from fitcompress.training.stage_result import StageResult

__all__ = ["train_student"]


def train_student(session: Session, planned: Planned, fingerprint: str) -> StageResult:
    """Stage 2: the whole student, trained in place, learns what the teacher says; with a weight of
    hints, these too, and without any weight for the teacher only the labels.
    """
    teacher, student = planned.teacher, planned.student
    recipe, epochs = session.recipe.stage2, session.recipe.stage2.epochs or 0
    if not recipe.has_teacher and "values" not in output_kinds(teacher):
        cost = stage_cost(None, student)
        labels, spec = (
            supervised_objective(session, student, recipe.label_weight),
            view_spec(teacher, student),
        )
        return run_stage(session, "stage2", labels, spec, recipe.optim, epochs, fingerprint, cost)
    hint_nodes, guided_nodes = pair_nodes(planned) if recipe.hint_weight else ([], [])
    distilling = DistillObjective(
        frozen(session, teacher, hint_nodes, with_output=True),
        cut_at(student, guided_nodes, with_output=True) if guided_nodes else student.network,
        recipe,
        teacher_preprocess=Preprocess(teacher.interface.images),
        student_preprocess=Preprocess(student.interface.images),
        output_kinds=output_kinds(teacher),
        is_labelled=session.data.labelled,
    )
    objective: Objective = distilling
    subject = fingerprint
    if recipe.hint_weight:
        student.network.to(session.device)
        hinting = prepare_hints(session, planned)
        subject = f"{fingerprint} {hinting.subject} and outputs"
        objective = JointObjective(
            distilling, hinting.matcher, weight=recipe.hint_weight, targets=hinting.targets
        )
    spec, cost = view_spec(teacher, student), stage_cost(teacher, student)
    return run_stage(session, "stage2", objective, spec, recipe.optim, epochs, subject, cost)
