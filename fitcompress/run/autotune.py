"""Measures how networks run fastest: the precision and memory layout of the teacher, and whether
compiling pays for the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fitcompress.data.bundle import DataBundle
from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.evaluation.benchmark import Runner, paired_latency, torch_runner
from fitcompress.events import Emit, Notice
from fitcompress.models.model import Model, make_model
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import Layout, Precision
from fitcompress.run.session import host_device, plain_batches
from fitcompress.training.compiled import compiler_message
from fitcompress.training.device import (
    has_bf16,
    preserved_random_state,
    resolve_layout,
    resolve_precision,
    start_accelerator,
    to_channels_last,
)
from fitcompress.training.distributed import ProcessGroup

__all__ = ["TeacherForm", "choose_teacher_form", "is_compiling_worthwhile"]

_TOLERANCE = 0.01
"""Largest difference of the outputs from those in float32, relative to their norm."""
_MIN_SPEEDUP = 1.1
"""Smaller speedups are noise."""
_NUM_IMAGES, _NUM_ROUNDS, _BUDGET_S = 16, 9, 3.0
_LONG_TRAINING_S = 600.0
"""Compiling takes up to some minutes, which shorter training does not win back."""


@dataclass(frozen=True)
class TeacherForm:
    """How the frozen teacher runs."""

    precision: Precision
    layout: Layout

    def __str__(self) -> str:
        return f"{self.layout} {self.precision}"


def choose_teacher_form(
    recipe: Recipe, data: DataBundle, teacher: Teacher, emit: Emit
) -> TeacherForm:
    """The fastest precision and layout, among those the recipe leaves open, whose outputs stay
    within 1 % of those in float32. With several processes the first one decides.
    """
    device = host_device(recipe)
    forms = [TeacherForm(*form) for form in product(_precisions(recipe, device), _layouts(recipe))]
    if len(forms) == 1 or recipe.run.shard:
        return forms[0]
    group = ProcessGroup(start_accelerator(device, "fp32"))
    found = _fastest(recipe, data, teacher, forms, emit) if group.is_first else None
    chosen: TeacherForm = group.all_gather(found)[0]
    return chosen


def is_compiling_worthwhile(
    recipe: Recipe, data: DataBundle, student: Model, seconds: float, emit: Emit
) -> bool:
    """Whether training takes `seconds` long enough, and the student's steps are measured to be
    faster compiled. With several processes the first one decides.
    """
    device = host_device(recipe)
    accelerator = start_accelerator(device, resolve_precision(recipe.run.precision, device))
    group = ProcessGroup(accelerator)
    can_pay = group.is_first and device != "mps" and seconds > _LONG_TRAINING_S
    is_faster = can_pay and _is_faster_compiled(recipe, data, student, accelerator, emit)
    return bool(group.all_gather(is_faster)[0])


def _precisions(recipe: Recipe, device: str) -> list[Precision]:
    requested = recipe.run.teacher_precision
    if requested != "auto":
        return [requested]
    if has_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device == "cuda" else ["fp32"]


def _layouts(recipe: Recipe) -> list[Layout]:
    requested = recipe.run.teacher_layout
    return ["contiguous", "channels-last"] if requested == "auto" else [requested]


def _fastest(
    recipe: Recipe, data: DataBundle, teacher: Teacher, forms: Sequence[TeacherForm], emit: Emit
) -> TeacherForm:
    """The fastest of the forms whose outputs are close to those of the first."""
    device = host_device(recipe)
    model, spec = make_model(teacher.program, teacher.interface), teacher.interface.images
    images = plain_batches(recipe, data, spec)[0].images[:_NUM_IMAGES]
    networks = {
        form: freeze_teacher(model, precision=form.precision, layout=form.layout).network
        for form in forms
    }
    with torch.no_grad():
        inputs = Preprocess(spec)(images).to(device)
        outputs = {form: net.to(device)(inputs) for form, net in networks.items()}
    default, size = forms[0], len(images)
    runners = {str(form): torch_runner(net, spec.shape, device) for form, net in networks.items()}
    times = paired_latency(runners, (size,), num_warmup=1, num_runs=_NUM_ROUNDS, budget_s=_BUDGET_S)
    speedups = {form: times[str(form)][str(size)].speedup or 1.0 for form in forms}
    differences = {form: _difference(outputs[form], outputs[default]) for form in forms}
    close = [form for form in forms if differences[form] <= _TOLERANCE]
    best = max(close, key=speedups.__getitem__, default=default)
    chosen = best if speedups[best] >= _MIN_SPEEDUP else default
    measured = ", ".join(
        f"{form} is {speedups[form]:.2f}x as fast with a relative difference of"
        f" {differences[form]:.0e}"
        for form in forms[1:]
    )
    message = (
        f"the teacher runs in {chosen}: {measured}, compared with {default} (largest allowed"
        f" difference {_TOLERANCE:.0e})"
    )
    emit(Notice(topic="training", code="teacher-form-chosen", message=message))
    return chosen


def _is_faster_compiled(
    recipe: Recipe, data: DataBundle, student: Model, accelerator: Accelerator, emit: Emit
) -> bool:
    """Times training steps of two copies of the student, at the training batch size."""
    device, spec = host_device(recipe), student.interface.images
    size = min(recipe.data.batch_size, len(data.train))
    networks = [deepcopy(student.network).to(device).train() for _ in range(2)]
    if resolve_layout(recipe.run.layout, device) == "channels-last":
        for network in networks:
            to_channels_last(network)
    networks[1].compile(dynamic=False)

    def training_step(network: nn.Module) -> Runner:
        def step(images_NCHW: Tensor) -> None:
            with torch.enable_grad(), accelerator.autocast():
                loss = sum(output.float().mean() for output in tree_leaves(network(images_NCHW)))
            torch.as_tensor(loss).backward()

        return replace(torch_runner(network, spec.shape, device), run=step)

    runners = dict(zip(("plain", "compiled"), map(training_step, networks), strict=True))
    try:
        with preserved_random_state(device):
            times = paired_latency(
                runners, (size,), num_warmup=1, num_runs=_NUM_ROUNDS, budget_s=_BUDGET_S
            )
    except Exception as error:  # dynamo, its backends and compilers raise errors of any type
        message = f"not compiled: {compiler_message(error)}"
        emit(Notice(topic="training", code="compile-failed", message=message))
        return False
    speedup = times["compiled"][str(size)].speedup or 1.0
    is_faster = speedup >= _MIN_SPEEDUP
    chosen = "compiled" if is_faster else "without compiling"
    message = f"the student trains {chosen}: compiled steps are {speedup:.2f}x as fast"
    emit(Notice(topic="training", code="compile-chosen", message=message))
    return is_faster


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative difference (L2) of any output."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)
