"""Estimates of a run's training time and disk use, and the FLOPs of its stages."""

from __future__ import annotations

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch

from fitcompress.data.bundle import DataBundle
from fitcompress.events import Notice
from fitcompress.formatting import duration_text
from fitcompress.graph.analysis.costs import count_macs
from fitcompress.graph.cut import cut_program
from fitcompress.graph.program import Program
from fitcompress.models.model import Model
from fitcompress.recipe.recipe import Recipe
from fitcompress.run.session import ResolvedRecipe, Session, host_device
from fitcompress.student.planner import Planned

__all__ = [
    "StageCost",
    "estimate_adaptation",
    "estimate_training",
    "stage_cost",
    "training_seconds",
]


def training_seconds(recipe: ResolvedRecipe, data: DataBundle, planned: Planned) -> float | None:
    """Seconds that stage 1, stage 2 and the baseline will take, from the measured time of a step;
    None for sharded networks, which may be too large to run whole.
    """
    if recipe.run.shard:
        return None
    size = min(recipe.data.batch_size, len(data.train))
    device = host_device(recipe)
    teacher_s = _step_seconds(planned.teacher, size, device, trains=False)
    student_s = _step_seconds(planned.student, size, device, trains=True)
    # stage 1 runs each network up to its deepest paired layer
    hint_share = max(pair.hint.depth_share for pair in planned.pairs)
    guided_share = max(pair.guided.depth_share for pair in planned.pairs)
    epochs1, epochs2 = recipe.stage1.epochs or 0, recipe.stage2.epochs or 0
    seconds = epochs1 * (teacher_s * hint_share + student_s * guided_share)
    seconds += epochs2 * (teacher_s + student_s)
    seconds += (epochs1 + epochs2) * student_s if recipe.run.baseline else 0
    return seconds * (len(data.train) // size)


def estimate_training(recipe: Recipe, student: Model, seconds: float) -> Notice:
    """A notice of the time that training will take and the disk space that it needs."""
    return _estimate("training", student, seconds, host_device(recipe), 2 + recipe.run.baseline)


def estimate_adaptation(session: Session, model: Model, epochs: int) -> Notice:
    """The same for fine-tuning the teacher."""
    size = min(session.recipe.data.batch_size, len(session.data.train))
    steps = epochs * (len(session.data.train) // size)
    seconds = steps * _step_seconds(model, size, session.device, trains=True)
    return _estimate("adapting the teacher", model, seconds, session.device, 1)


def _estimate(what: str, model: Model, seconds: float, device: str, num_files: int) -> Notice:
    """For `num_files` checkpoints (weights and two moments) and as many saved networks."""
    params = sum(parameter.numel() for parameter in model.network.parameters())
    megabytes = params * 4 * (3 + 1) * num_files / 2**20
    return Notice(
        topic="training",
        code="training-estimate",
        message=f"{what} will take about {duration_text(seconds)} on {device}"
        f" and write {megabytes:.0f} MB",
    )


def _step_seconds(model: Model, size: int, device: str, *, trains: bool) -> float:
    """The fastest of three steps (a forward pass, and a backward pass if it trains) of a copy."""
    network = deepcopy(model.network).to(device).train(trains)
    images = torch.zeros((size, *model.interface.images.shape), device=device)
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        with torch.set_grad_enabled(trains), torch.random.fork_rng(devices=[]):
            outputs = network(images)
            first = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
            if trains:
                first.float().sum().backward()
            float(first.detach().sum())  # waits for the device
        best = min(best, time.perf_counter() - started)
    return best


@dataclass(frozen=True)
class StageCost:
    """FLOPs of one image's forward pass through each network; a multiply-add counts as two."""

    teacher_flops: int
    student_flops: int

    @property
    def step_flops(self) -> int:
        """FLOPs of one image in a training step: the student counts three times, since its
        backward pass computes gradients of both values and weights, each as costly as the forward
        pass.
        """
        return self.teacher_flops + 3 * self.student_flops


def stage_cost(
    teacher: Model | None, student: Model, hints: Sequence[str] = (), guided: Sequence[str] = ()
) -> StageCost:
    """The cost of a stage that runs the teacher up to the nodes `hints` and the student up to
    `guided`; without nodes, to their ends.
    """
    return StageCost(
        0 if teacher is None else _flops(teacher.program, hints), _flops(student.program, guided)
    )


def _flops(program: Program, nodes: Sequence[str]) -> int:
    part = cut_program(program, nodes, with_output=False) if nodes else program
    return 2 * count_macs(part)
