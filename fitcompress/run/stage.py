"""The stages of a run, each one call of the training engine: adapting the teacher, hints,
distillation, the baseline.

Layer: pipeline. Knows what is trained on what; the loop itself is `training`.
"""

from __future__ import annotations

import hashlib
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fitcompress.data.bundle import DataBundle
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.errors import DataError, TeacherError
from fitcompress.events import Notice
from fitcompress.graph.program import output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.run.hints import frozen, prepare_hints
from fitcompress.models.model import Model, save_model
from fitcompress.distillation.frozen_teacher import StageCost, confirm_part, cut_at, freeze_teacher, stage_cost
from fitcompress.student.planner import Planned, make_model, untaught, with_state
from fitcompress.ranks import is_first_process
from fitcompress.recipe.recipe import OptimRecipe, Recipe
from fitcompress.formatting import duration_text
from fitcompress.run.session import Session
from fitcompress.recipe.fields import flat_settings
from fitcompress.interface import InputSpec, OutputKind
from fitcompress.models.teacher import Teacher, fingerprint_of
from fitcompress.run.cache_policy import Keeper
from fitcompress.distillation.hint_objectives import HintObjective, JointObjective
from fitcompress.training.engine import train
from fitcompress.training.objective import DistillObjective, Objective, SupervisedObjective
from fitcompress.training.result import StageResult

__all__ = [
    "adapt_teacher",
    "estimate_cost",
    "output_kinds",
    "require_adaptable",
    "train_baseline",
    "train_hints",
    "train_student",
    "training_seconds",
]

_CONFIRMED_IMAGES = 4
_PRETRAINED_LR, _FRESH_LR = 3e-4, 1e-3
"""Adapting a teacher: AdamW's usual rates for fine-tuning and for training from random weights."""
_FREE = (
    *("run.out", "run.device", "run.baseline", "run.compile", "run.threads", "run.log"),
    *("run.timing", "run.cache_teacher", "data.num_workers", "teacher.source", "teacher.weights"),
)
"""Settings that change nothing in the stages themselves, but for rounding; which teacher it is, its
fingerprint says."""


def _run_stage(
    session: Session,
    stage: str,
    objective: Objective,
    spec: InputSpec,
    optim: OptimRecipe,
    epochs: int,
    subject: str,
    cost: StageCost,
) -> StageResult:
    """One stage under the session's settings. `subject`: what else the stage depends on, for its
    checkpoint.
    """
    train_data, held_out = session.views(spec)
    recipe = session.recipe
    if (
        isinstance(objective, HintObjective | DistillObjective | JointObjective)
        and objective.asks_teacher
    ):
        keeper = Keeper(stage, recipe, session.run, session.device, session.emit, subject)
        keeper.keep(objective, train_data, "train", epochs)
        keeper.keep(objective, held_out, "held out", epochs)
    result = train(
        objective,
        train_data=train_data,
        held_out_data=held_out,
        optim=optim,
        epochs=epochs,
        batch_size=recipe.data.batch_size,
        seed=recipe.run.seed,
        checkpoint_path=session.run.checkpoint_path(stage),
        stage=stage,
        device=recipe.run.device,
        precision=recipe.run.precision,
        layout=recipe.run.layout,
        compiles=recipe.run.compile == "on",
        emit=session.emit,
        resume=session.resume,
        num_workers=recipe.data.num_workers,
        accumulate=recipe.data.accumulate,
        auto_batch=recipe.run.auto_batch,
        shards=recipe.run.shard,
        recipe_hash=_recipe_hash(recipe, subject),
    )
    return replace(result, flops_per_image=cost.step_flops)


def _recipe_hash(recipe: Recipe, subject: str) -> str:
    settings = {name: value for name, value in flat_settings(recipe).items() if name not in _FREE}
    return hashlib.sha256(repr((sorted(settings.items()), subject)).encode()).hexdigest()


def adapt_teacher(session: Session, teacher: Teacher, folder: Path) -> tuple[Teacher, StageResult]:
    """A copy of the teacher fine-tuned on the data, kept as the model folder `folder`."""
    interface = replace(teacher.interface, class_names=session.data.class_names or ())
    model = make_model(teacher.program, interface)
    spec = interface.images
    objective = SupervisedObjective(model.network, student_preprocess=Preprocess(spec))
    usual = _FRESH_LR if teacher.weights_from == "random" else _PRETRAINED_LR
    optim = OptimRecipe(lr=session.recipe.teacher.lr or usual)
    epochs = session.recipe.teacher.epochs or 0
    session.emit(_estimate_adaptation(session, model, epochs))
    cost = stage_cost(None, model)
    result = _run_stage(
        session, "teacher", objective, spec, optim, epochs, teacher.fingerprint, cost
    )
    program = with_state(model, model.network)
    if is_first_process():
        save_model(folder, program, {}, interface, model.blocks)
    fingerprint = fingerprint_of(program)
    adapted = replace(teacher, program=program, interface=interface, fingerprint=fingerprint)
    return adapted, result


def train_hints(session: Session, planned: Planned, fingerprint: str) -> StageResult:
    """Stage 1: the student up to the guided layers, trained in place, learns the hints."""
    teacher, student = planned.teacher, planned.student
    student.network.to(session.device)
    hint_nodes, guided_nodes = _nodes(planned)
    guided = cut_at(student, guided_nodes)
    _confirm_cuts(session, planned, freeze_teacher(teacher, hint_nodes).network, guided)
    hinting = prepare_hints(session, planned)
    objective = HintObjective(
        hinting.network,
        guided,
        hinting.matcher,
        teacher_preprocess=Preprocess(teacher.interface.images),
        student_preprocess=Preprocess(student.interface.images),
        targets=hinting.targets,
    )
    recipe, spec = session.recipe.stage1, _view_spec(teacher, student)
    asked = teacher if objective.asks_teacher else None
    cost = stage_cost(asked, student, hint_nodes, guided_nodes)
    subject = f"{fingerprint} {hinting.subject}"
    return _run_stage(
        session, "stage1", objective, spec, recipe.optim, recipe.epochs or 0, subject, cost
    )


def _nodes(planned: Planned) -> tuple[list[str], list[str]]:
    """Of the hints and of the guided layers."""
    pairs = planned.pairs
    return [pair.hint.node for pair in pairs], [pair.guided.node for pair in pairs]


def _confirm_cuts(
    session: Session, planned: Planned, hint_part: nn.Module, guided_part: nn.Module
) -> None:
    """Holds what will be trained against what hooks see in the whole networks, on some images."""
    pairs = planned.pairs
    sides = (
        (planned.teacher, hint_part, [pair.hint.name for pair in pairs]),
        (planned.student, guided_part, [pair.guided.name for pair in pairs]),
    )
    for model, part, names in sides:
        spec = model.interface.images
        views = make_dataset(session.data.train, spec, augment="none", seed=0)
        images = views.batch(range(min(_CONFIRMED_IMAGES, len(views)))).images
        inputs = Preprocess(spec)(images).to(session.device)
        part = part.to(session.device).eval()
        confirm_part(model.network.to(session.device), part, names, inputs)


def _view_spec(teacher: Model, student: Model) -> InputSpec:
    """Both networks see one view, of the larger of their sizes; each resizes it to its own."""
    specs = (teacher.interface.images, student.interface.images)
    return max(specs, key=lambda spec: spec.shape)


def train_student(session: Session, planned: Planned, fingerprint: str) -> StageResult:
    """Stage 2: the whole student, trained in place, learns what the teacher says; with a weight of
    hints, these too, and without any weight for the teacher only the labels.
    """
    teacher, student = planned.teacher, planned.student
    recipe, epochs = session.recipe.stage2, session.recipe.stage2.epochs or 0
    if not recipe.has_teacher and "values" not in output_kinds(teacher):
        cost = stage_cost(None, student)
        labels, spec = (
            _supervised(session, student, recipe.label_weight),
            _view_spec(teacher, student),
        )
        return _run_stage(session, "stage2", labels, spec, recipe.optim, epochs, fingerprint, cost)
    hint_nodes, guided_nodes = _nodes(planned) if recipe.hint_weight else ([], [])
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
    spec, cost = _view_spec(teacher, student), stage_cost(teacher, student)
    return _run_stage(session, "stage2", objective, spec, recipe.optim, epochs, subject, cost)


def _supervised(session: Session, model: Model, weight: float = 1.0) -> SupervisedObjective:
    """Labels alone.

    Raises:
        DataError: not all images have one.
    """
    if not session.data.labelled:
        raise DataError(
            "training on labels alone: not all images have a label",
            advice="Give the teacher a weight (stage2.lambda_kd).",
        )
    return SupervisedObjective(
        model.network,
        session.recipe.stage2.label_smoothing,
        student_preprocess=Preprocess(model.interface.images),
        output_kind=output_kinds(model)[0],
        weight=weight,
    )


def output_kinds(model: Model) -> tuple[OutputKind, ...]:
    """What each output means."""
    shapes = propagate_shapes(model.program, 2)
    outputs = output_nodes(model.program.graph)
    return tuple(model.interface.kind_of(shapes[node.name]) for node in outputs)


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
    objective, recipe = _supervised(session, model), session.recipe
    epochs = (recipe.stage1.epochs or 0) + (recipe.stage2.epochs or 0)
    optim, cost = recipe.stage2.optim, stage_cost(None, model)
    result = _run_stage(session, "baseline", objective, spec, optim, epochs, fingerprint, cost)
    return model, result


def training_seconds(session: Session, planned: Planned) -> float | None:
    """How long training will take, from a measured step of copies; None where shards of the
    networks train: whole ones may not fit there.
    """
    recipe, student = session.recipe, planned.student
    if recipe.run.shard:
        return None
    per_epoch = len(session.data.train)
    size = min(recipe.data.batch_size, per_epoch)
    teacher_s, student_s = (
        _step_seconds(session, model, size, trains=model is student)
        for model in (planned.teacher, student)
    )
    depth = planned.pairs[0]
    stage1 = teacher_s * depth.hint.depth_share + student_s * depth.guided.depth_share
    epochs1, epochs2 = recipe.stage1.epochs or 0, recipe.stage2.epochs or 0
    seconds = epochs1 * stage1 + epochs2 * (teacher_s + student_s)
    seconds += (epochs1 + epochs2) * student_s if recipe.run.baseline else 0
    return seconds * (per_epoch // size)


def estimate_cost(session: Session, planned: Planned, seconds: float) -> Notice:
    """How long training will take and what it will write."""
    return _estimate(session, planned.student, seconds, session.recipe.run.baseline + 2)


def _estimate_adaptation(session: Session, model: Model, epochs: int) -> Notice:
    size = min(session.recipe.data.batch_size, len(session.data.train))
    steps = epochs * (len(session.data.train) // size)
    seconds = steps * _step_seconds(session, model, size, trains=True)
    return _estimate(session, model, seconds, 1, what="adapting the teacher")


def _estimate(
    session: Session, model: Model, seconds: float, num_files: int, what: str = "training"
) -> Notice:
    """`num_files` checkpoints of weights and two moments each, and as many networks."""
    params = sum(parameter.numel() for parameter in model.network.parameters())
    megabytes = params * 4 * (3 + 1) * num_files / 2**20
    return Notice(
        topic="training",
        message=f"{what} will take about {duration_text(seconds)} on {session.device}"
        f" and write {megabytes:.0f} MB",
    )


def _step_seconds(session: Session, model: Model, size: int, *, trains: bool) -> float:
    """Seconds of a forward pass and, where it trains, a backward pass, on a copy of the network."""
    network = deepcopy(model.network).to(session.device).train(trains)
    shape = (size, *model.interface.images.shape)
    images = torch.zeros(shape, device=session.device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with torch.set_grad_enabled(trains), torch.random.fork_rng(devices=[]):
            outputs = network(images)
            first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            if trains:
                first.float().sum().backward()
            float(first.detach().sum())
        best = min(best, time.perf_counter() - started)
    return best


def require_adaptable(teacher: Teacher, data: DataBundle, recipe: Recipe) -> None:
    """Refuse a teacher of other classes than the data's where it may not, or cannot, be adapted.

    Raises:
        TeacherError: it has other classes and stays as it is.
    """
    if recipe.teacher.adapt and teacher.can_resize_classes:
        return
    why = (
        "adapting is switched off"
        if teacher.can_resize_classes
        else "this kind of teacher cannot be given another head"
    )
    raise TeacherError(
        f"teacher '{teacher.name}' has {teacher.num_classes} classes,"
        f" the data has {data.num_classes}, and {why}",
        advice="use data with the teacher's classes, or a timm model or a factory as teacher",
    )
