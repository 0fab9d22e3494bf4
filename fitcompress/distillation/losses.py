"""The losses of both stages, as pure functions of tensors.

Shapes: `N` batch, `K` classes (always axis 1), `...` further positions of dense outputs. Losses are
computed in float32 or better, even under autocast, and are means over samples *and* positions, so
that dense outputs have the same weight as others.
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
    "standardize_logits",
    "value_loss",
]

HintReduction = Literal["mean", "sum"]
"""Reduction of a sample's squared differences: "sum" is FitNets Eq. 3 literally; "mean" does not
depend on the size of the map."""


def hint_loss(regressed: Tensor, hint: Tensor, *, reduction: HintReduction = "mean") -> Tensor:
    """Half the squared distance of the regressed guided values from the hint, as a scalar.

    "sum": 1/2 ||u_h - r(v_g)||^2, summed over channels and positions, averaged over the batch
    (Eq. 3).
    "mean": the same, divided by the elements of a sample; for standardized hints, where a regressor
    that always predicts the mean has loss 0.5. The difference matters for plain SGD, hardly for
    adaptive optimizers.

    Args:
        regressed: the regressor's output, (N, ...).
        hint: the teacher's values, of the same shape; receives no gradient.

    Source: FitNets (arXiv 1412.6550v4) Eq. 3. The public code sums over one spatial axis only and
    averages over the rest.
    """
    assert regressed.shape == hint.shape, (regressed.shape, hint.shape)
    squares_ND = (_precise(regressed) - _precise(hint).detach()).square().flatten(1)
    per_sample_N = squares_ND.sum(1) if reduction == "sum" else squares_ND.mean(1)
    return 0.5 * per_sample_N.mean()


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, tau: float, student_tau: float | None = None
) -> Tensor:
    """H(P_T^tau, P_S^tau): cross-entropy of the student's softened class probabilities with the
    teacher's, as a scalar.

    It has the gradient of the KL divergence, and is larger by the entropy of the teacher's
    distribution.

    Args:
        student_logits: (N, K, ...), before the softmax.
        teacher_logits: of the same shape; receive no gradient.
        tau: temperature, above 0.
        student_tau: temperature of the student; None means `tau`.

    Source: FitNets Eq. 1 and 2; Hinton, Vinyals, Dean (arXiv 1503.02531) section 2.

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4), tau=3.0).exp().round().item()
    4.0
    """
    assert student_logits.shape == teacher_logits.shape, (
        student_logits.shape,
        teacher_logits.shape,
    )
    targets = F.softmax(_precise(teacher_logits).detach() / tau, dim=1)
    log_probabilities = F.log_softmax(_precise(student_logits) / (student_tau or tau), dim=1)
    return -(targets * log_probabilities).sum(1).mean()


def soft_binary_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, *, tau: float, student_tau: float | None = None
) -> Tensor:
    """`soft_cross_entropy` for K independent labels, each a two-class problem; a mean over labels
    too.
    """
    assert student_logits.shape == teacher_logits.shape, (
        student_logits.shape,
        teacher_logits.shape,
    )
    targets = torch.sigmoid(_precise(teacher_logits).detach() / tau)
    return F.binary_cross_entropy_with_logits(
        _precise(student_logits) / (student_tau or tau), targets
    )


def standardize_logits(logits: Tensor) -> Tensor:
    """Logits (N, K, ...) with mean 0 and (population) standard deviation 1 over the classes.

    Source: logit standardization (Sun et al., CVPR 2024), which distills only the relations between
    logits.
    """
    centered = _precise(logits) - _precise(logits).mean(1, keepdim=True)
    # The gradient of the root is infinite at 0, where all logits are equal; the small term avoids
    # that.
    return centered / (centered.square().mean(1, keepdim=True) + 1e-12).sqrt()


def label_loss(
    logits: Tensor, labels: Tensor, *, kind: OutputKind = "classes", smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the true labels, averaged over labeled samples and positions; 0 if there
    are none.

    Args:
        logits: (N, K, ...).
        labels: int64 (N, ...), -1 for missing labels; or float class shares (N, K, ...), as with
            mixup.
        kind: "classes" or "labels".
        smoothing: share of the target that is spread evenly over the classes.
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
    standardize: bool = False,
    smoothing: float = 0.0,
) -> dict[str, Tensor]:
    """The distillation loss and its parts, as scalars: "loss" = label_weight * "ce" + lambda_kd *
    "kd".

    "kd" is the soft cross-entropy. `tau_squared` multiplies it by tau^2 (Hinton), so that the size
    of its gradient does not depend on tau. FitNets Eq. 2 is `tau_squared=False, label_weight=1`.
    Without labels (None, or all -1) the label term is 0.

    Args:
        student_logits: (N, K, ...).
        teacher_logits: of the same shape; receive no gradient.
        labels: as in `label_loss`, or None.
        standardize: standardize the logits of both for "kd".

    Source: FitNets Eq. 2; Hinton et al. section 2.
    """
    soft = soft_binary_cross_entropy if kind == "labels" else soft_cross_entropy
    sides = (student_logits, teacher_logits)
    student, teacher = (standardize_logits(side) for side in sides) if standardize else sides
    kd = soft(student, teacher, tau=tau, student_tau=student_tau) * (tau**2 if tau_squared else 1.0)
    if labels is None:
        return {"loss": lambda_kd * kd, "kd": kd}
    ce = label_loss(student_logits, labels, kind=kind, smoothing=smoothing)
    return {"loss": label_weight * ce + lambda_kd * kd, "kd": kd, "ce": ce}


def mixed_shares(labels: Tensor, mix_labels: Tensor, mix_lam: Tensor, num_classes: int) -> Tensor:
    """Class shares (N, K) of mixed samples: `mix_lam` for the label, the rest for the partner's.

    Args:
        labels: int64 (N); -1 for a missing label, which has no share.
        mix_labels: int64 (N), the partners' labels.
        mix_lam: float (N), the weights of `labels`.

    Source: mixup (Zhang et al. 2018) section 2.
    """
    own_NK, partners_NK = (
        _one_hot(part, num_classes) * (part >= 0)[:, None] for part in (labels, mix_labels)
    )
    return mix_lam[:, None] * own_NK + (1 - mix_lam)[:, None] * partners_NK


def value_loss(student_values: Tensor, teacher_values: Tensor) -> Tensor:
    """Mean squared error between outputs that are plain values, as a scalar."""
    assert student_values.shape == teacher_values.shape, (
        student_values.shape,
        teacher_values.shape,
    )
    return (_precise(student_values) - _precise(teacher_values).detach()).square().mean()


def lambda_at(progress: float, start: float, end: float | None) -> float:
    """The weight of the soft term at `progress` (0 at the first step, 1 at the last): linear from
    start to end, or constant if `end` is None.

    Source: FitNets section 2.3; its experiments go from 4 to 1.

    >>> lambda_at(0.5, 4.0, 1.0)
    2.5
    """
    return start if end is None else start + (end - start) * progress


def _precise(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Class shares (N, K, ...) of labels (N, ...). Callers must mask missing labels, which become
    class 0.
    """
    return F.one_hot(labels.clamp(min=0), num_classes).movedim(-1, 1)
