"""The losses of both stages as pure functions of tensors. Layer: torch only; knows no network,
batch or recipe.

Shapes: `N` batch, `K` classes (always axis 1), `...` any further positions (dense outputs). All
losses are computed in float32 or better whatever autocast does around them, and all are means over
samples *and* positions, so that a dense output weighs what a plain one does.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fitcompress.interface import OutputKind

__all__ = [
    "HintReduction",
    "hint_loss",
    "kd_loss",
    "label_loss",
    "lambda_at",
    "mixed_shares",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
    "standardise_logits",
    "value_loss",
]

HintReduction = Literal["mean", "sum"]
"""How one sample's squared differences are reduced: "sum" is FitNets Eq. 3 to the letter, "mean"
does not grow with the map.
"""


def hint_loss(regressed: Tensor, hint: Tensor, *, reduction: HintReduction = "mean") -> Tensor:
    """Half the squared distance of the regressed guided values to the hint, as a scalar.

    "sum": 1/2 ||u_h - r(v_g)||^2, summed over all channels and positions of a sample, then the mean
    over the batch: Eq. 3.
    "mean": the same, divided by the number of elements of a sample; meant for standardised hints,
    where 0.5 is the loss of a regressor that always answers the mean. Adaptive optimizers hardly
    see the difference, plain SGD does.

    Args:
        regressed: the regressor's answer, (N, ...).
        hint: the teacher's values, of the same shape; no gradient flows into it.

    Source: FitNets (arXiv 1412.6550v4) Eq. 3. The public code sums over one spatial axis only and
    averages the rest.
    """
    assert regressed.shape == hint.shape, (regressed.shape, hint.shape)
    squares_ND = (_precise(regressed) - _precise(hint).detach()).square().flatten(1)
    per_sample_N = squares_ND.sum(1) if reduction == "sum" else squares_ND.mean(1)
    return 0.5 * per_sample_N.mean()


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, tau: float, student_tau: float | None = None
) -> Tensor:
    """H(P_T^tau, P_S^tau): cross-entropy of the student's softened classes against the teacher's,
    as a scalar.

    Its gradient is that of the KL divergence; its value is larger by the entropy of the teacher's
    distribution.

    Args:
        student_logits: (N, K, ...), before the softmax.
        teacher_logits: the same shape; no gradient flows into it.
        tau: the temperature, above 0.
        student_tau: the student's own temperature; None means `tau`.

    Source: FitNets Eq. 1 and 2; Hinton, Vinyals, Dean (arXiv 1503.02531) section 2.

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4), tau=3.0).exp().round().item()
    4.0
    """
    assert student_logits.shape == teacher_logits.shape, (
        student_logits.shape,
        teacher_logits.shape,
    )
    targets = F.softmax(_precise(teacher_logits).detach() / tau, dim=1)
    log_answers = F.log_softmax(_precise(student_logits) / (student_tau or tau), dim=1)
    return -(targets * log_answers).sum(1).mean()


def soft_binary_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, tau: float, student_tau: float | None = None
) -> Tensor:
    """The twin of `soft_cross_entropy` for K independent labels, each a two-class problem; the mean
    over labels too.
    """
    assert student_logits.shape == teacher_logits.shape, (
        student_logits.shape,
        teacher_logits.shape,
    )
    targets = torch.sigmoid(_precise(teacher_logits).detach() / tau)
    return F.binary_cross_entropy_with_logits(
        _precise(student_logits) / (student_tau or tau), targets
    )


def standardise_logits(logits: Tensor) -> Tensor:
    """Logits of mean 0 and (population) standard deviation 1 over the classes of each sample, (N,
    K, ...).

    Source: logit standardisation (Sun et al., CVPR 2024): only the relations between logits are
    then distilled.
    """
    centred = _precise(logits) - _precise(logits).mean(1, keepdim=True)
    # The root of a sum of squares has no gradient at 0 (all logits equal): the small term inside
    # keeps it finite.
    return centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt()


def label_loss(
    logits: Tensor, labels: Tensor, *, kind: OutputKind = "classes", smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the true labels, averaged over the labelled samples and positions; 0 where
    none is labelled.

    Args:
        logits: (N, K, ...).
        labels: int64 (N, ...), -1 where there is none; or float shares of each class, (N, K, ...),
            as mixup makes them.
        kind: "classes" or "labels"; plain values have no label loss.
        smoothing: share of the target spread evenly over the classes.
    """
    logits, num_classes = _precise(logits), logits.shape[1]
    is_labeled = labels.sum(1) > 0 if labels.is_floating_point() else labels >= 0
    shares = labels if labels.is_floating_point() else _one_hot(labels, num_classes)
    shares = shares.to(logits.dtype) * (1.0 - smoothing) + smoothing / num_classes
    if kind == "labels":
        each = F.binary_cross_entropy_with_logits(logits, shares, reduction="none").mean(1)
    else:
        each = -(shares * F.log_softmax(logits, dim=1)).sum(1)
    return (each * is_labeled).sum() / is_labeled.sum().clamp(min=1)


def kd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor | None,
    *,
    kind: OutputKind = "classes",
    tau: float,
    student_tau: float | None = None,
    tau_squared: bool,
    label_weight: float,
    lambda_kd: float,
    standardise: bool = False,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The distillation loss and its parts: "loss" = label_weight * "ce" + lambda_kd * "kd", all
    scalars.

    "kd" is the soft cross-entropy, times tau^2 where `tau_squared`: Hinton's form, whose gradient
    keeps its size when tau changes. FitNets Eq. 2 is `tau_squared=False, label_weight=1`. Without
    labels (None, or all -1) the label term is 0.

    Args:
        student_logits: (N, K, ...).
        teacher_logits: the same shape; no gradient flows into it.
        labels: as `label_loss` takes them, or None.
        standardise: z-score the logits of both sides first (the label term keeps the raw ones).

    Source: FitNets Eq. 2; Hinton et al. section 2.
    """
    soft = soft_binary_cross_entropy if kind == "labels" else soft_cross_entropy
    sides = (student_logits, teacher_logits)
    student, teacher = (standardise_logits(side) for side in sides) if standardise else sides
    kd = soft(student, teacher, tau=tau, student_tau=student_tau) * (tau**2 if tau_squared else 1.0)
    if labels is None:
        return {"loss": lambda_kd * kd, "kd": kd}
    ce = label_loss(student_logits, labels, kind=kind, smoothing=smoothing)
    return {"loss": label_weight * ce + lambda_kd * kd, "kd": kd, "ce": ce}


def mixed_shares(labels: Tensor, mix_labels: Tensor, mix_lam: Tensor, num_classes: int) -> Tensor:
    """Label shares of mixed samples, (N, K): `mix_lam` of the one label, the rest of the other.

    Args:
        labels: int64 (N), -1 where there is none: such a label has no share.
        mix_labels: int64 (N), the partners' labels.
        mix_lam: float (N), the weights of `labels`.

    Source: mixup (Zhang et al. 2018) section 2.
    """
    own_NK, partners_NK = (
        _one_hot(part, num_classes) * (part >= 0)[:, None] for part in (labels, mix_labels)
    )
    return mix_lam[:, None] * own_NK + (1 - mix_lam)[:, None] * partners_NK


def value_loss(student_values: Tensor, teacher_values: Tensor) -> Tensor:
    """Mean squared error between outputs that are plain numbers, over samples and elements, as a
    scalar.
    """
    assert student_values.shape == teacher_values.shape, (
        student_values.shape,
        teacher_values.shape,
    )
    return (_precise(student_values) - _precise(teacher_values).detach()).square().mean()


def lambda_at(progress: float, start: float, end: float | None) -> float:
    """The weight of the soft term at `progress` (0 first step, 1 last step): linear from start to
    end; None keeps start.

    Source: FitNets section 2.3 anneals it linearly, 4 to 1 in its experiments.

    >>> lambda_at(0.5, 4.0, 1.0)
    2.5
    """
    return start if end is None else start + (end - start) * progress


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Shares (N, K, ...) of int labels (N, ...); a missing label is put to class 0 and must be
    masked by the caller.
    """
    return F.one_hot(labels.clamp(min=0), num_classes).movedim(-1, 1)
