"""What the guided layers learn, as the recipe says: the teacher's hints, or a control's. Layer:
pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.distillation.hint_objectives import HintMatcher
from fitcompress.distillation.hint_targets import (
    HintTargets,
    LabelHints,
    MatchedMoments,
    RandomHints,
    ShuffledHints,
)
from fitcompress.distillation.losses import HintReduction
from fitcompress.distillation.statistics import (
    estimate_hint_statistics,
    reestimate_batch_norms,
    standardise_hints,
)
from fitcompress.errors import DataError
from fitcompress.models.model import Model, make_model, with_state
from fitcompress.run.session import Session, plain_batches
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import plan_student
from fitcompress.student.planner import Planned, make_regressors

__all__ = ["Hinting", "frozen", "inherit_statistics", "prepare_hints"]

_DRAWN_FROM, _DRAWN_BYTES = 512, 2**28
"""Random vectors get the covariance of the hints of so many images, at most, in so many bytes."""


@dataclass(frozen=True)
class Hinting:
    """What a stage with a hint loss needs."""

    network: nn.Module
    """The teacher up to its hints, or what stands for it, on the session's device: a tuple with one
    value per pair."""
    targets: HintTargets
    matcher: HintMatcher
    subject: str
    """What its answers depend on, besides the teacher's fingerprint and the images."""


def prepare_hints(session: Session, planned: Planned) -> Hinting:
    """The hints of the recipe, regressors with their first weights, and the hints' statistics.

    Raises:
        DataError: labels are to be learnt, and not all images have one; or there is one image,
            and vectors are to be drawn like its hint.
    """
    recipe, images = session.recipe.hints, planned.teacher.interface.images
    nodes = [pair.hint.node for pair in planned.pairs]
    network = frozen(session, planned.teacher, nodes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session.recipe.run.seed)
        regressors = [regressor for regressor, _ in make_regressors(planned.pairs, recipe)]
    axes = [regressor.channel_axis for regressor in regressors]
    subject = str(nodes)
    if recipe.target == "random-teacher":
        other = frozen(session, _random_twin(session, planned.teacher), nodes)
        own, wanted = (
            estimate_hint_statistics(_hints(session, side, planned.teacher), channel_axes=axes)
            for side in (other, network)
        )
        network = MatchedMoments(other, own, wanted).to(session.device)
        subject += f" of random weights, seed {session.recipe.run.seed}"
    targets = _targets(session, planned, network)
    statistics = []
    if recipe.standardise and recipe.target != "labels":
        batches = [batch.to(session.device) for batch in plain_batches(session, images)]
        preprocess = Preprocess(images).to(session.device)
        statistics = standardise_hints(
            network, preprocess, regressors, batches, num_batches=len(batches)
        )
    reduction: HintReduction = "mean" if recipe.standardise else "sum"
    return Hinting(network, targets, HintMatcher(regressors, statistics, reduction), subject)


def frozen(
    session: Session, model: Model, nodes: Sequence[str] = (), *, with_output: bool = False
) -> nn.Module:
    """`freeze_teacher` in the session's precision and layout, on its device."""
    run = session.recipe.run
    teacher = freeze_teacher(
        model,
        nodes,
        with_output=with_output,
        precision=run.teacher_precision,
        layout=run.teacher_layout,
    )
    return teacher.network.to(session.device)


def _targets(session: Session, planned: Planned, network: nn.Module) -> HintTargets:
    seed, target = session.recipe.run.seed, session.recipe.hints.target
    if target == "labels":
        if not session.data.labelled:
            raise DataError(
                "learning labels as hints: not all images have a label",
                advice="leave out hints.target=labels (the arm `label`)",
            )
        return LabelHints(planned.pairs[0].hint.shape[0], len(planned.pairs))
    if target == "random-vectors":
        return RandomHints(_some_hints(session, network, planned.teacher), seed)
    return ShuffledHints() if target == "shuffled" else HintTargets()


def _some_hints(session: Session, network: nn.Module, teacher: Model) -> list[Tensor]:
    """For each pair the hints of the first images, at most as many as are drawn from."""
    parts: list[list[Tensor]] = []
    count = num_bytes = 0
    for hints in _hints(session, network, teacher):
        parts.append([hint.cpu() for hint in hints])
        count += len(hints[0])
        num_bytes += sum(hint.numel() * hint.element_size() for hint in hints)
        if count >= _DRAWN_FROM or num_bytes >= _DRAWN_BYTES:
            break
    if count < 2:
        raise DataError("drawing vectors like the hints: there is one image, which has no variance")
    return [torch.cat(values)[:_DRAWN_FROM] for values in zip(*parts, strict=True)]


def _hints(session: Session, network: nn.Module, teacher: Model) -> Iterator[Sequence[Tensor]]:
    """The network's values for some batches of training images."""
    spec = teacher.interface.images
    preprocess = Preprocess(spec).to(session.device)
    with torch.no_grad():
        for batch in plain_batches(session, spec):
            yield network(preprocess(batch.images.to(session.device)))


def _random_twin(session: Session, model: Model) -> Model:
    """The same network with random weights, other ones than a student's of the same seed, and batch
    norms that fit them.
    """
    plan = plan_student(model.program, depth_mult=1.0, width_mult=1.0)
    tensors = initial_tensors(plan, init="random", seed=session.recipe.run.seed + 1)
    twin = make_model(replace(plan.program, tensors=tensors), model.interface)
    inherit_statistics(session, twin)
    return replace(twin, program=with_state(twin, twin.network))


def inherit_statistics(session: Session, model: Model) -> None:
    """Estimate the batch norms' statistics anew: inherited ones are those of more channels.

    Modifies the network.
    """
    network = nn.Sequential(Preprocess(model.interface.images), model.network).to(session.device)
    batches = plain_batches(session, model.interface.images)
    reestimate_batch_norms(network, [batch.to(session.device) for batch in batches], len(batches))
