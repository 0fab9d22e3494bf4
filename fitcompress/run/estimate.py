"""How long training takes, what it writes, and what a step costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch

from fitcompress.events import Notice
from fitcompress.formatting import duration_text
from fitcompress.graph.analysis.costs import count_macs
from fitcompress.graph.cut import cut_program
from fitcompress.graph.program import Program
from fitcompress.models.model import Model
from fitcompress.run.session import Session
from fitcompress.student.planner import Planned

__all__ = ["StageCost", "estimate_cost", "stage_cost", "training_seconds"]


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


def estimate_adaptation(session: Session, model: Model, epochs: int) -> Notice:
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


@dataclass(frozen=True)
class StageCost:
    """Floating-point operations of one image forward through each part; two for a multiply-add.

    A step costs the teacher's once and the student's three times: backward it needs the gradients
    of the values and of the weights, each as much as forward.
    """

    teacher_flops: int
    student_flops: int

    @property
    def step_flops(self) -> int:
        """Of one image in a training step."""
        return self.teacher_flops + 3 * self.student_flops


def stage_cost(
    teacher: Model | None, student: Model, hints: Sequence[str] = (), guided: Sequence[str] = ()
) -> StageCost:
    """The cost of a stage that runs the teacher up to the hints and the student up to the guided
    layers, or all of them.
    """
    return StageCost(
        0 if teacher is None else _flops(teacher.program, hints), _flops(student.program, guided)
    )


def _flops(program: Program, nodes: Sequence[str]) -> int:
    part = cut_program(program, nodes, with_output=False) if nodes else program
    return 2 * count_macs(part)
