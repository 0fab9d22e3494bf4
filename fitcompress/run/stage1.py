"""Stage 1, hint training: the student up to its guided layers learns the teacher's hints."""

from __future__ import annotations

from torch import nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.distillation.hint_objectives import HintObjective
from fitcompress.distillation.partial_networks import cut_at, verify_cut
from fitcompress.run.estimate import stage_cost
from fitcompress.run.hints import prepare_hints
from fitcompress.run.session import Session
from fitcompress.run.stage import run_stage, view_spec
from fitcompress.student.planner import Planned
from fitcompress.training.stage_result import StageResult

__all__ = ["train_hints"]

_NUM_CONFIRMED_IMAGES = 4


def train_hints(session: Session, planned: Planned) -> StageResult:
    """Runs stage 1; trains the student's network in place."""
    teacher, student = planned.teacher, planned.student
    student.network.to(session.device)
    guided = cut_at(student, planned.guided_nodes)
    _confirm_cuts(session, planned, freeze_teacher(teacher, planned.hint_nodes).network, guided)
    hinting = prepare_hints(session, planned)
    objective = HintObjective(
        hinting.network,
        guided,
        hinting.matcher,
        teacher_preprocess=Preprocess(teacher.interface.images),
        student_preprocess=Preprocess(student.interface.images),
        targets=hinting.targets,
    )
    recipe = session.recipe.stage1
    run_teacher = teacher if objective.needs_teacher else None
    return run_stage(
        session,
        "stage1",
        objective,
        spec=view_spec(teacher, student),
        optim=recipe.optim,
        epochs=recipe.epochs or 0,
        subject=f"{planned.teacher_fingerprint} {hinting.subject}",
        cost=stage_cost(run_teacher, student, planned.hint_nodes, planned.guided_nodes),
    )


def _confirm_cuts(
    session: Session, planned: Planned, hint_part: nn.Module, guided_part: nn.Module
) -> None:
    """Checks on a few images that both parts compute what hooks in the whole networks see."""
    pairs = planned.pairs
    sides = (
        (planned.teacher, hint_part, [pair.hint.name for pair in pairs]),
        (planned.student, guided_part, [pair.guided.name for pair in pairs]),
    )
    for model, part, names in sides:
        spec = model.interface.images
        views = make_dataset(session.data.train, spec, augment="none", seed=0)
        images = views.batch(range(min(_NUM_CONFIRMED_IMAGES, len(views)))).images
        inputs = Preprocess(spec)(images).to(session.device)
        part = part.to(session.device).eval()
        verify_cut(model.network.to(session.device), part, names, inputs)
