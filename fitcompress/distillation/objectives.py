"""What stages minimise, as modules that hold the networks; where hints are learnt: see
`hint_objectives`. Layer: training; knows no loop, optimizer or file.

Each objective answers three questions for the engine: what is trained (and checkpointed), what is
the loss of a batch, and how good is it on a held-out batch. Networks take the same uint8 views,
each through its own preprocessing. The teacher is always in eval mode and under `no_grad` (not
`inference_mode`, whose tensors may not enter a loss that trains something).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from fitcompress.data.views import Batch
from fitcompress.distillation.losses import kd_loss, label_loss, lambda_at, mixed_shares, value_loss
from fitcompress.interface import OutputKind
from fitcompress.recipe.schema import Stage2Recipe
from fitcompress.training.protocols import Scores, Values

__all__ = ["Chain", "DistillObjective", "SupervisedObjective", "as_tuple", "label_targets"]


class DistillObjective(nn.Module):
    """Stage 2: the whole student learns the teacher's softened outputs and, where there are labels,
    the labels.

    Args:
        teacher: returns a tensor or a tuple of them, before any final softmax or sigmoid.
        student: returns the same shapes.
        recipe: temperatures and weights.
        teacher_preprocess: uint8 images to the teacher's input; a tuple where it has several.
        student_preprocess: uint8 images to the student's input or inputs.
        output_kinds: what each output means; the labels belong to the first that is not "values",
            where that is one row of scores. The losses are added.
        is_labeled: whether the data has labels.

    Source: FitNets Eq. 2; Hinton et al. (arXiv 1503.02531) section 2.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        recipe: Stage2Recipe,
        *,
        teacher_preprocess: nn.Module,
        student_preprocess: nn.Module,
        output_kinds: Sequence[OutputKind] = ("classes",),
        is_labeled: bool = True,
    ) -> None:
        super().__init__()
        self.teacher = Chain(teacher_preprocess, teacher)
        self.student_preprocess = student_preprocess
        self.trained: nn.Module = student
        self.recipe = recipe
        self.output_kinds = tuple(output_kinds)
        self.is_labeled = is_labeled
        self._main = _main_output(self.output_kinds)

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.teacher, self.trained

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    @property
    def needs_teacher(self) -> bool:
        return True

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        return self.losses_of(batch, *self.outputs(batch), progress)

    def losses_of(
        self, batch: Batch, student: Values, teacher: Values, progress: float
    ) -> dict[str, Tensor | float]:
        """`losses`, from the outputs of both."""
        lambda_kd = lambda_at(progress, self.recipe.lambda_kd, self.recipe.lambda_kd_end)
        losses = self._losses(batch, student, teacher, lambda_kd)
        return {**losses, "lambda_kd": lambda_kd} if self._main is not None else {**losses}

    def evaluate(self, batch: Batch) -> Scores:
        return self.scores_of(batch, *self.outputs(batch))

    def scores_of(self, batch: Batch, student: Values, teacher: Values) -> Scores:
        """`evaluate`, from the outputs of both."""
        loss = self._losses(
            batch,
            student,
            teacher,
            lambda_at(1.0, self.recipe.lambda_kd, self.recipe.lambda_kd_end),
        )
        scores = {"loss": (loss["loss"] * len(batch), len(batch))}
        if self._main is None or self.output_kinds[self._main] != "classes":
            return scores
        logits, teacher_logits = student[self._main], teacher[self._main]
        agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().flatten(1 - logits.dim())
        agreed = agreement.reshape(len(batch), -1).mean(1).sum()
        return {
            **scores,
            "agreement": (agreed, len(batch)),
            **_top1(logits, batch.labels, self.is_labeled),
        }

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the teacher says: its outputs."""
        with torch.no_grad():
            return as_tuple(self.teacher(batch.images))

    def outputs(self, batch: Batch) -> tuple[Values, Values]:
        """The student's and the teacher's."""
        teacher = batch.teacher_outputs or self.forward_teacher(batch)
        inputs = as_tuple(self.student_preprocess(batch.images))
        return as_tuple(self.trained(*inputs)), teacher

    def _losses(
        self,
        batch: Batch,
        student: Values,
        teacher: Values,
        lambda_kd: float,
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for index, kind in enumerate(self.output_kinds):
            has_labels = self.is_labeled and index == self._main and student[index].dim() == 2
            labels = label_targets(batch, student[index].shape[1]) if has_labels else None
            parts = self._output_losses(kind, student[index], teacher[index], labels, lambda_kd)
            suffix = f"_{index + 1}" if len(self.output_kinds) > 1 else ""
            total = parts.pop("loss")
            losses["loss"] = losses["loss"] + total if "loss" in losses else total
            losses |= {name + suffix: part for name, part in parts.items()}
        return losses

    def _output_losses(
        self,
        kind: OutputKind,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        lambda_kd: float,
    ) -> dict[str, Tensor]:
        if kind == "values":
            error = value_loss(student, teacher)
            return {"loss": error, "mse": error}
        return kd_loss(
            student,
            teacher,
            labels,
            kind=kind,
            tau=self.recipe.tau,
            student_tau=self.recipe.student_tau,
            tau_squared=self.recipe.tau_squared,
            label_weight=self.recipe.label_weight,
            lambda_kd=lambda_kd,
            standardise=self.recipe.standardise_logits,
            smoothing=self.recipe.label_smoothing,
        )


class SupervisedObjective(nn.Module):
    """Plain training on labels: the baseline, and the adaptation of a teacher.

    Args:
        student: returns logits, or a tuple that begins with them.
        label_smoothing: share of the target spread evenly over the classes.
        student_preprocess: uint8 images to the network's input.
        output_kind: "classes" or "labels".
        weight: of the loss.
    """

    def __init__(
        self,
        student: nn.Module,
        label_smoothing: float = 0.0,
        *,
        student_preprocess: nn.Module,
        output_kind: OutputKind = "classes",
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.student_preprocess = student_preprocess
        self.trained: nn.Module = student
        self.label_smoothing = label_smoothing
        self.output_kind: OutputKind = output_kind
        self.weight = weight

    @property
    def networks(self) -> Sequence[nn.Module]:
        return (self.trained,)

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:  # noqa: ARG002
        return {"loss": self._loss(batch, self._logits(batch))}

    def evaluate(self, batch: Batch) -> Scores:
        logits = self._logits(batch)
        scores = {"loss": (self._loss(batch, logits) * len(batch), len(batch))}
        return {**scores, **_top1(logits, batch.labels, self.output_kind == "classes")}

    def _logits(self, batch: Batch) -> Tensor:
        return as_tuple(self.trained(self.student_preprocess(batch.images)))[0]

    def _loss(self, batch: Batch, logits: Tensor) -> Tensor:
        targets = label_targets(batch, logits.shape[1])
        loss = label_loss(logits, targets, kind=self.output_kind, smoothing=self.label_smoothing)
        return self.weight * loss


class Chain(nn.Sequential):
    """A preprocessing and the network that takes what it gives, one tensor or several."""

    def forward(self, images: Tensor) -> Any:
        preprocess, network = self
        return network(*as_tuple(preprocess(images)))


def as_tuple(values: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def _main_output(kinds: tuple[OutputKind, ...]) -> int | None:
    """The output that the labels belong to."""
    return next((index for index, kind in enumerate(kinds) if kind != "values"), None)


def label_targets(batch: Batch, num_classes: int) -> Tensor:
    """The labels as `label_loss` takes them; shares (N, K) where mixup is on."""
    if batch.mix_labels is None or batch.mix_lam is None:
        return batch.labels
    return mixed_shares(batch.labels, batch.mix_labels, batch.mix_lam, num_classes)


def _top1(logits: Tensor, labels: Tensor, is_labeled: bool) -> Scores:
    """How many labelled samples are right; empty where the logits are not one row per label."""
    if not is_labeled or logits.dim() != 2:
        return {}
    return {"top1": ((logits.argmax(1) == labels).sum(), (labels >= 0).sum())}
