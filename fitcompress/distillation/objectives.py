"""Objectives without hint losses: distillation of outputs, and training on labels.

Teacher and student take the same uint8 views, each through its own preprocessing. The teacher runs
in eval mode under `no_grad`; tensors of `inference_mode` could not be used in a loss.
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
    """Stage 2: trains the whole student on the teacher's softened outputs and on the labels, if the
    data has any.

    Args:
        teacher: returns a tensor or a tuple of tensors, before any final softmax or sigmoid.
        student: returns the same shapes.
        recipe: temperatures and weights.
        teacher_preprocess: from uint8 images to the teacher's input, or a tuple of several.
        student_preprocess: the same for the student.
        output_kinds: the kind of each output, whose losses are added. The labels belong to the
            first that is not "values", if it has one row of scores per sample.
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
        self._label_output = _label_output(self.output_kinds)

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
        """The losses, given both networks' outputs."""
        lambda_kd = lambda_at(progress, self.recipe.lambda_kd, self.recipe.lambda_kd_end)
        losses = self._losses(batch, student, teacher, lambda_kd)
        return {**losses, "lambda_kd": lambda_kd} if self._label_output is not None else {**losses}

    def evaluate(self, batch: Batch) -> Scores:
        return self.scores_of(batch, *self.outputs(batch))

    def scores_of(self, batch: Batch, student: Values, teacher: Values) -> Scores:
        """The scores, given both networks' outputs."""
        loss = self._losses(
            batch,
            student,
            teacher,
            lambda_at(1.0, self.recipe.lambda_kd, self.recipe.lambda_kd_end),
        )
        scores = {"loss": (loss["loss"] * len(batch), len(batch))}
        if self._label_output is None or self.output_kinds[self._label_output] != "classes":
            return scores
        logits, teacher_logits = student[self._label_output], teacher[self._label_output]
        agreement = (logits.argmax(1) == teacher_logits.argmax(1)).float().flatten(1 - logits.dim())
        agreed = agreement.reshape(len(batch), -1).mean(1).sum()
        return {
            **scores,
            "agreement": (agreed, len(batch)),
            **_top1(logits, batch.labels, self.is_labeled),
        }

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """The teacher's outputs for a batch."""
        with torch.no_grad():
            return as_tuple(self.teacher(batch.images))

    def outputs(self, batch: Batch) -> tuple[Values, Values]:
        """The student's and the teacher's outputs."""
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
            has_labels = (
                self.is_labeled and index == self._label_output and student[index].dim() == 2
            )
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
            standardize=self.recipe.standardise_logits,
            smoothing=self.recipe.label_smoothing,
        )


class SupervisedObjective(nn.Module):
    """Training on labels alone: for the baseline, and to adapt a teacher.

    Args:
        student: returns logits, or a tuple that starts with logits.
        label_smoothing: share of the target that is spread evenly over the classes.
        student_preprocess: from uint8 images to the network's input.
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
    """A preprocessing module followed by a network with one or several inputs."""

    def forward(self, images: Tensor) -> Any:
        preprocess, network = self
        return network(*as_tuple(preprocess(images)))


def as_tuple(values: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def _label_output(kinds: tuple[OutputKind, ...]) -> int | None:
    """The index of the output that the labels belong to."""
    return next((index for index, kind in enumerate(kinds) if kind != "values"), None)


def label_targets(batch: Batch, num_classes: int) -> Tensor:
    """The labels for `label_loss`; class shares (N, K) with mixup."""
    if batch.mix_labels is None or batch.mix_lam is None:
        return batch.labels
    return mixed_shares(batch.labels, batch.mix_labels, batch.mix_lam, num_classes)


def _top1(logits: Tensor, labels: Tensor, is_labeled: bool) -> Scores:
    """The number of correct samples; empty unless there is one row of logits per label."""
    if not is_labeled or logits.dim() != 2:
        return {}
    return {"top1": ((logits.argmax(1) == labels).sum(), (labels >= 0).sum())}
