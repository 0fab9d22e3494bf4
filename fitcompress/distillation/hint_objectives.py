"""Objectives with hint losses: of stage 1, and of stage 2 with hints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, cast

import torch
from torch import Tensor, nn

from fitcompress.data.views import Batch
from fitcompress.distillation.hint_targets import HintTargets
from fitcompress.distillation.losses import HintReduction, hint_loss
from fitcompress.distillation.objectives import Chain, DistillObjective, as_tuple
from fitcompress.distillation.regressors import Regressor
from fitcompress.distillation.statistics import HintStatistics
from fitcompress.training.protocols import Scores

__all__ = ["HintMatcher", "HintObjective", "JointObjective"]


class HintMatcher(nn.Module):
    """The hint losses of pairs, with their regressors.

    Args:
        regressors: one per pair.
        statistics: one per pair, to standardize the hints; empty uses raw hints. They are stored in
            the checkpoint, so that a resumed run has the same targets.
        reduction: "sum" is FitNets Eq. 3 literally; "mean" suits standardized hints.
    """

    def __init__(
        self,
        regressors: Sequence[Regressor],
        statistics: Sequence[HintStatistics] = (),
        reduction: HintReduction = "mean",
    ) -> None:
        super().__init__()
        assert len(statistics) in (0, len(regressors)), (len(statistics), len(regressors))
        self.regressors, self.statistics = nn.ModuleList(regressors), nn.ModuleList(statistics)
        self.reduction: HintReduction = reduction

    def forward(self, guided: Sequence[Tensor], hints: Sequence[Tensor]) -> list[Tensor]:
        """The loss of each pair, from guided values and hints (N, ...)."""
        regressors = cast("Sequence[Regressor]", self.regressors)
        targets = [part.target(hint) for part, hint in zip(regressors, hints, strict=True)]
        if len(self.statistics):
            pairs = zip(self.statistics, targets, strict=True)
            targets = [standardize(target) for standardize, target in pairs]
        regressed = [part(value) for part, value in zip(regressors, guided, strict=True)]
        return [
            hint_loss(value, target, reduction=self.reduction)
            for value, target in zip(regressed, targets, strict=True)
        ]


class HintObjective(nn.Module):
    """Stage 1: trains the student up to its guided layers, and the regressors, on the teacher's
    hints. Labels are not used.

    Args:
        teacher_cut: the teacher up to its hints; returns a tuple of one tensor per pair.
        student_cut: the student up to its guided layers, in the same order; shares its modules with
            the student.
        matcher: the losses of the pairs.
        teacher_preprocess: from uint8 images to the teacher's input, or a tuple of several.
        student_preprocess: the same for the student.
        targets: a control to learn instead of the teacher's hints.

    Source: FitNets (arXiv 1412.6550v4) Eq. 3 and Algorithm 1, stage 1. The losses of several pairs
    are added.
    """

    def __init__(
        self,
        teacher_cut: nn.Module,
        student_cut: nn.Module,
        matcher: HintMatcher,
        *,
        teacher_preprocess: nn.Module,
        student_preprocess: nn.Module,
        targets: HintTargets | None = None,
    ) -> None:
        super().__init__()
        self.teacher = Chain(teacher_preprocess, teacher_cut)
        self.student_preprocess = student_preprocess
        self.targets = targets or HintTargets()
        self.trained = nn.ModuleDict({"student": student_cut, "matcher": matcher})

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.teacher, self.trained["student"]

    @property
    def needs_teacher(self) -> bool:
        return self.targets.needs_teacher

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:  # noqa: ARG002
        return _named(self._pair_losses(batch))

    def evaluate(self, batch: Batch) -> Scores:
        return {"loss": (torch.stack(self._pair_losses(batch)).sum() * len(batch), len(batch))}

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """The teacher's hints, one per pair."""
        with torch.no_grad():
            return as_tuple(self.teacher(batch.images))

    def _pair_losses(self, batch: Batch) -> list[Tensor]:
        hints = self.targets(batch, lambda: batch.teacher_outputs or self.forward_teacher(batch))
        inputs = as_tuple(self.student_preprocess(batch.images))
        losses: list[Tensor] = self.trained["matcher"](
            as_tuple(self.trained["student"](*inputs)), hints
        )
        return losses


class JointObjective(nn.Module):
    """Hints and outputs in one stage: the loss of `DistillObjective` plus weighted hint losses.

    Args:
        distill: its networks return one hint or guided value per pair, then their outputs.
        matcher: the losses of the pairs.
        weight: of the hint losses.
        targets: a control to learn instead of the teacher's hints.

    Source: the "FitNet" of most later work, which adds a hint term to the loss in all of training;
    here together with the distillation term, which such work mostly omits.
    """

    def __init__(
        self,
        distill: DistillObjective,
        matcher: HintMatcher,
        *,
        weight: float,
        targets: HintTargets | None = None,
    ) -> None:
        super().__init__()
        self.distill = distill
        self.trained = nn.ModuleDict({"student": distill.trained, "matcher": matcher})
        self.weight = weight
        self.targets = targets or HintTargets()
        self._num_pairs = len(matcher.regressors)

    @property
    def teacher(self) -> nn.Module:
        return self.distill.teacher

    @property
    def networks(self) -> Sequence[nn.Module]:
        return self.distill.networks

    @property
    def needs_teacher(self) -> bool:
        return True

    def losses(self, batch: Batch, progress: float) -> dict[str, Tensor | float]:
        student, teacher = self.distill.outputs(batch)
        num = self._num_pairs
        parts = self.distill.losses_of(batch, student[num:], teacher[num:], progress)
        hints = self._hint_losses(batch, student[:num], teacher[:num])
        total = parts.pop("loss") + self.weight * torch.stack(hints).sum()
        named = _named(hints)
        return {"loss": total, **parts, "hint": named.pop("loss"), **named}

    def evaluate(self, batch: Batch) -> Scores:
        student, teacher = self.distill.outputs(batch)
        num = self._num_pairs
        scores = self.distill.scores_of(batch, student[num:], teacher[num:])
        loss, count = scores["loss"]
        hints = self._hint_losses(batch, student[:num], teacher[:num])
        return {**scores, "loss": (loss + self.weight * torch.stack(hints).sum() * count, count)}

    def forward_teacher(self, batch: Batch) -> tuple[Tensor, ...]:
        """The teacher's hints, one per pair, followed by its outputs."""
        return self.distill.forward_teacher(batch)

    def _hint_losses(
        self, batch: Batch, guided: Sequence[Tensor], hints: Sequence[Tensor]
    ) -> list[Tensor]:
        losses: list[Tensor] = self.trained["matcher"](guided, self.targets(batch, lambda: hints))
        return losses


def _named(parts: Sequence[Tensor]) -> dict[str, Tensor | float]:
    """The sum of the losses as "loss", and each one if there are several."""
    names = {f"hint_{number}": part for number, part in enumerate(parts, 1) if len(parts) > 1}
    return {"loss": torch.stack(list(parts)).sum(), **names}
