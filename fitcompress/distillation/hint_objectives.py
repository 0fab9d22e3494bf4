"""What is minimised where hints are learnt: in stage 1 alone, or together with the outputs.
Layer: training; knows no loop, optimizer or file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

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
    """The hint loss of the pairs, with the regressors that are trained for it.

    Args:
        regressors: one per pair.
        statistics: one per pair standardises the hints; empty takes them raw. They are saved with
            the rest, so that a resumed run goes on with the very same targets.
        reduction: "sum" is FitNets Eq. 3 to the letter, "mean" goes with standardised hints.
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
        self._regressors, self._statistics = list(regressors), list(statistics)

    def forward(self, guided: Sequence[Tensor], hints: Sequence[Tensor]) -> list[Tensor]:
        """A loss per pair, of guided values and hints (N, ...)."""
        pairs = zip(self._regressors, hints, strict=True)
        targets = [regressor.target(hint) for regressor, hint in pairs]
        if self._statistics:
            known = zip(self._statistics, targets, strict=True)
            targets = [standardise(target) for standardise, target in known]
        answers = [part(value) for part, value in zip(self._regressors, guided, strict=True)]
        return [
            hint_loss(answer, target, reduction=self.reduction)
            for answer, target in zip(answers, targets, strict=True)
        ]


class HintObjective(nn.Module):
    """Stage 1: the student up to its guided layers, and the regressors, learn the teacher's hints.

    No labels are used.

    Args:
        teacher_cut: the teacher up to its hints; returns a tuple with one tensor per pair.
        student_cut: the student up to its guided layers, in the same order; its modules are the
            student's own.
        matcher: of the pairs.
        teacher_preprocess: uint8 images to the teacher's input; a tuple where it has several.
        student_preprocess: uint8 images to the student's input or inputs.
        targets: what is learnt instead of the teacher's hints.

    Source: FitNets (arXiv 1412.6550v4) Eq. 3 and Algorithm 1, stage 1. Several pairs are trained at
    once, their losses added.
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
        """What the teacher says: one hint a pair."""
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
    """Hints and outputs in one stage: the loss of `DistillObjective` and the weighted hint losses.

    Args:
        distill: its networks return one hint or guided value per pair, then their outputs.
        matcher: of the pairs.
        weight: of the hint losses.
        targets: what is learnt instead of the teacher's hints.

    Source: what most later work calls FitNet, a hint term beside the loss from the first step to
    the last; with the distillation term, which that mostly lacks.
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
        """What the teacher says: one hint a pair, then its outputs."""
        return self.distill.forward_teacher(batch)

    def _hint_losses(
        self, batch: Batch, guided: Sequence[Tensor], hints: Sequence[Tensor]
    ) -> list[Tensor]:
        losses: list[Tensor] = self.trained["matcher"](guided, self.targets(batch, lambda: hints))
        return losses


def _named(parts: Sequence[Tensor]) -> dict[str, Tensor | float]:
    """Their sum as "loss", and each one where there are several."""
    names = {f"hint_{number}": part for number, part in enumerate(parts, 1) if len(parts) > 1}
    return {"loss": torch.stack(list(parts)).sum(), **names}
