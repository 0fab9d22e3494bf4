"""The targets of the guided layers: the teacher's hints, or those of a control experiment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Batch
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
    estimate_target_statistics,
    reestimate_batch_norms,
)
from fitcompress.errors import DataError
from fitcompress.models.model import Model, make_model, with_state
from fitcompress.run.session import Session, plain_batches
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import plan_student
from fitcompress.student.planner import Planned, make_regressors

__all__ = ["Hinting", "frozen_network", "prepare_hints", "reestimate_statistics"]

_MAX_SAMPLES, _MAX_SAMPLE_BYTES = 512, 2**28
"""Hints that the covariance of random vectors is estimated from."""


@dataclass(frozen=True)
class Hinting:
    """The parts of a hint loss."""

    network: nn.Module
    """The teacher, or the control network, up to its hints; returns a tuple, one value per pair."""
    targets: HintTargets
    matcher: HintMatcher
    subject: str
    """What the hints depend on, besides the teacher's fingerprint and the images."""


def prepare_hints(session: Session, planned: Planned) -> Hinting:
    """Builds the hint network, the targets, and initialized regressors with the hints' statistics.

    Raises:
        DataError: the targets are labels, and not all images have one; or random vectors, and a
            single image has no covariance.
    """
    recipe, images = session.recipe.hints, planned.teacher.interface.images
    nodes = planned.hint_nodes
    network = frozen_network(session, planned.teacher, nodes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(session.recipe.run.seed)
        regressors = [regressor for regressor, _ in make_regressors(planned.pairs, recipe)]
    axes = [regressor.channel_axis for regressor in regressors]
    subject = str(nodes)
    if recipe.target == "random-teacher":
        twin = frozen_network(session, _random_twin(session, planned.teacher), nodes)
        twin_statistics, statistics = (
            estimate_hint_statistics(_hints(session, side, planned.teacher), channel_axes=axes)
            for side in (twin, network)
        )
        network = MatchedMoments(twin, twin_statistics, statistics).to(session.device)
        subject += f" of random weights, seed {session.recipe.run.seed}"
    targets = _targets(session, planned, network)
    standardized = []
    if recipe.standardise and recipe.target != "labels":
        batches = _batches(session, planned.teacher)
        preprocess = Preprocess(images).to(session.device)
        standardized = estimate_target_statistics(
            network, preprocess, regressors, batches, num_batches=len(batches)
        )
    reduction: HintReduction = "mean" if recipe.standardise else "sum"
    return Hinting(network, targets, HintMatcher(regressors, standardized, reduction), subject)


def frozen_network(
    session: Session, model: Model, nodes: Sequence[str] = (), *, with_output: bool = False
) -> nn.Module:
    """`freeze_teacher` in the precision, layout and on the device of the session."""
    run = session.recipe.run
    teacher = freeze_teacher(
        model,
        nodes,
        with_output=with_output,
        precision=run.teacher_precision,
        layout=run.teacher_layout,
    )
    return teacher.network.to(session.device)


def reestimate_statistics(session: Session, model: Model) -> None:
    """Estimates the model's batch norm statistics on training images; modifies its network.

    Inherited statistics belong to activations of more channels.
    """
    network = nn.Sequential(Preprocess(model.interface.images), model.network).to(session.device)
    batches = _batches(session, model)
    reestimate_batch_norms(network, batches, len(batches))


def _targets(session: Session, planned: Planned, network: nn.Module) -> HintTargets:
    seed, target = session.recipe.run.seed, session.recipe.hints.target
    if target == "labels":
        if not session.data.is_labeled:
            raise DataError(
                "preparing hints: labels are the targets, and not all images have a label",
                code="labels-missing",
                advice="Drop hints.target=labels (the arm `label`), or use labeled images.",
            )
        return LabelHints(planned.pairs[0].hint.shape[0], len(planned.pairs))
    if target == "random-vectors":
        return RandomHints(_sample_hints(session, network, planned.teacher), seed)
    return ShuffledHints() if target == "shuffled" else HintTargets()


def _sample_hints(session: Session, network: nn.Module, teacher: Model) -> list[Tensor]:
    """The hints of up to 512 images, one tensor per pair."""
    parts: list[list[Tensor]] = []
    count = num_bytes = 0
    for hints in _hints(session, network, teacher):
        parts.append([hint.cpu() for hint in hints])
        count += len(hints[0])
        num_bytes += sum(hint.numel() * hint.element_size() for hint in hints)
        if count >= _MAX_SAMPLES or num_bytes >= _MAX_SAMPLE_BYTES:
            break
    if count < 2:
        raise DataError(
            "preparing hints: expected at least 2 training images to estimate the covariance of"
            f" the hints, got {count}",
            code="too-few-images",
            advice="Use more training images.",
            expected=2,
            got=count,
        )
    return [torch.cat(values)[:_MAX_SAMPLES] for values in zip(*parts, strict=True)]


def _hints(session: Session, network: nn.Module, teacher: Model) -> Iterator[Sequence[Tensor]]:
    """The network's values for some batches of training images."""
    preprocess = Preprocess(teacher.interface.images).to(session.device)
    with torch.no_grad():
        for batch in plain_batches(session.recipe, session.data, teacher.interface.images):
            yield network(preprocess(batch.images.to(session.device)))


def _batches(session: Session, model: Model) -> list[Batch]:
    """Plain training batches at the model's input size, on the session's device."""
    batches = plain_batches(session.recipe, session.data, model.interface.images)
    return [batch.to(session.device) for batch in batches]


def _random_twin(session: Session, model: Model) -> Model:
    """The same network with random weights (of another seed than the student's) and batch norm
    statistics that fit them.
    """
    plan = plan_student(model.program, depth_mult=1.0, width_mult=1.0)
    tensors = initial_tensors(plan, init="random", seed=session.recipe.run.seed + 1)
    twin = make_model(replace(plan.program, tensors=tensors), model.interface)
    reestimate_statistics(session, twin)
    return replace(twin, program=with_state(twin, twin.network))
