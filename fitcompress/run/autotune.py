"""How the networks run: for the teacher the fastest precision and layout in which it says the same,
and whether it pays to compile what trains. Layer: pipeline.

Measured once, when a run begins; what was chosen stands in the run's recipe from then on, so that a
resumed run, or another from that recipe, computes the same bits.
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

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.evaluation.benchmark import Runner, paired_latency, torch_runner
from fitcompress.events import Notice
from fitcompress.models.model import Model, make_model
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import Layout, Precision
from fitcompress.run.session import Session, plain_batches
from fitcompress.training.compile import compiler_said
from fitcompress.training.device import (
    has_bf16,
    preserved_random_state,
    resolve_layout,
    resolve_precision,
    start_accelerator,
    to_channels_last,
)
from fitcompress.training.distributed import ProcessGroup

__all__ = ["as_chosen", "compiling", "tuned"]

_TOLERANCE = 0.01
"""How far the outputs may be from those in float32, as a share of their norm."""
_WORTH = 1.1
"""So many times as fast as the usual form another must be to be chosen: less is noise."""
_NUM_IMAGES, _NUM_ROUNDS, _SECONDS = 16, 9, 3.0
"""What is measured on, how often, and for about how long."""


_LONG = 600.0
"""Seconds of training from which some minutes of compiling come back."""
_CHOSEN = ("teacher_precision", "teacher_layout", "compile")


@dataclass(frozen=True)
class _Form:
    precision: Precision
    layout: Layout

    def __str__(self) -> str:
        return f"{self.layout} {self.precision}"


def tuned(session: Session, teacher: Teacher) -> Session:
    """The session with a precision and a layout for the teacher where its recipe leaves them open;
    of several processes the first one's.
    """
    forms = [_Form(*form) for form in product(_precisions(session), _layouts(session))]
    chosen = forms[0]
    if len(forms) > 1 and not session.recipe.run.shard:
        group = ProcessGroup(start_accelerator(session.device, "fp32"))
        found = _fastest(session, teacher, forms) if group.is_first else None
        chosen = group.all_gather(found)[0]
    run = session.recipe.run
    run = replace(run, teacher_precision=chosen.precision, teacher_layout=chosen.layout)
    return replace(session, recipe=replace(session.recipe, run=run))


def compiling(session: Session, student: Model, seconds: float | None) -> Session:
    """The session with a decision on compiling: on where training takes so long, if known, that
    compiling comes back, and the student's steps are measured to be faster for it.
    """
    run = session.recipe.run
    if run.compile == "auto" and seconds:
        precision = resolve_precision(run.precision, session.device)
        accelerator = start_accelerator(session.device, precision)
        group = ProcessGroup(accelerator)
        can_pay = group.is_first and session.device != "mps" and seconds > _LONG
        pays = group.all_gather(can_pay and _is_faster_compiled(session, student, accelerator))[0]
        run = replace(run, compile="on" if pays else "off")
    return replace(session, recipe=replace(session.recipe, run=run))


def as_chosen(recipe: Recipe, stored: Recipe) -> Recipe:
    """The recipe of a run that goes on, with what was chosen when it began."""
    run, before = recipe.run, stored.run
    open_ones = {name: getattr(before, name) for name in _CHOSEN if getattr(run, name) == "auto"}
    return replace(recipe, run=replace(run, **open_ones))


def _precisions(session: Session) -> list[Precision]:
    asked, device = session.recipe.run.teacher_precision, session.device
    if asked != "auto":
        return [asked]
    if has_bf16(device):
        return ["fp32", "bf16"]
    return ["fp32", "fp16"] if device == "cuda" else ["fp32"]


def _layouts(session: Session) -> list[Layout]:
    asked = session.recipe.run.teacher_layout
    return ["contiguous", "channels-last"] if asked == "auto" else [asked]


def _fastest(session: Session, teacher: Teacher, forms: Sequence[_Form]) -> _Form:
    """The form to take; the first is the usual one."""
    model, spec = make_model(teacher.program, teacher.interface), teacher.interface.images
    images = next(iter(plain_batches(session, spec))).images[:_NUM_IMAGES]
    networks = {
        form: freeze_teacher(model, precision=form.precision, layout=form.layout).network
        for form in forms
    }
    with torch.no_grad():
        inputs = Preprocess(spec)(images).to(session.device)
        outputs = {form: net.to(session.device)(inputs) for form, net in networks.items()}
    usual, size = forms[0], str(len(images))
    runners = {
        str(form): torch_runner(network, spec.shape, session.device)
        for form, network in networks.items()
    }
    times = paired_latency(
        runners, (len(images),), num_warmup=1, num_runs=_NUM_ROUNDS, budget_s=_SECONDS
    )
    speedups = {form: times[str(form)][size]["speedup"] for form in forms}
    differences = {form: _difference(outputs[form], outputs[usual]) for form in forms}
    fit = [form for form in forms if differences[form] <= _TOLERANCE]
    best = max(fit, key=speedups.__getitem__, default=usual)
    chosen = best if speedups[best] >= _WORTH else usual
    said = ", ".join(
        f"{form} is {speedups[form]:.2f}x as fast and off by {differences[form]:.0e}"
        for form in forms[1:]
    )
    message = f"the teacher runs {chosen}: against {usual}, {said} ({_TOLERANCE:.0e} is allowed)"
    session.emit(Notice(topic="training", message=message))
    return chosen


def _is_faster_compiled(session: Session, student: Model, accelerator: Accelerator) -> bool:
    """Whether steps of copies of the student are, forward and backward, in batches as trained."""
    recipe, device, spec = session.recipe, session.device, student.interface.images
    size = min(recipe.data.batch_size, len(session.data.train))
    networks = [deepcopy(student.network).to(device).train() for _ in range(2)]
    if resolve_layout(recipe.run.layout, device) == "channels-last":
        for network in networks:
            to_channels_last(network)
    networks[1].compile(dynamic=False)

    def stepping(network: nn.Module) -> Runner:
        def step(images_NCHW: Tensor) -> None:
            with torch.enable_grad(), accelerator.autocast():
                loss = sum(output.float().mean() for output in tree_leaves(network(images_NCHW)))
            torch.as_tensor(loss).backward()

        return replace(torch_runner(network, spec.shape, device), run=step)

    runners = dict(zip(("plain", "compiled"), map(stepping, networks), strict=True))
    try:
        with preserved_random_state(device):
            times = paired_latency(
                runners, (size,), num_warmup=1, num_runs=_NUM_ROUNDS, budget_s=_SECONDS
            )
    except Exception as error:  # dynamo, its backend and its compilers raise what they like
        said = f"not compiled: {compiler_said(error)}"
        session.emit(Notice(topic="training", message=said))
        return False
    speedup = times["compiled"][str(size)]["speedup"]
    pays: bool = speedup >= _WORTH
    said = "compiled" if pays else "as it is"
    message = f"the student trains {said}: compiled, its steps are {speedup:.2f}x as fast"
    session.emit(Notice(topic="training", message=message))
    return pays


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest over the outputs, as a share of their norms."""
    pairs = zip(found, expected, strict=True)
    return max(float((a - b).norm() / b.norm().clamp(min=1e-12)) for a, b in pairs)
