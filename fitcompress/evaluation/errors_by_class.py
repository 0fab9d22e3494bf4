"""Errors of a classifier: by class, in its confidence, and against its teacher.

Shape suffixes: N images, K classes, M bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fitcompress.evaluation.accuracy import Predictions, divergence
from fitcompress.evaluation.significance import share
from fitcompress.interface import OutputKind
from fitcompress.records.measurements import (
    Calibration,
    CalibrationBin,
    ClassAccuracy,
    Disagreement,
    Doubt,
)

__all__ = ["calibration", "class_accuracies", "disagreements", "doubts"]

_NUM_BINS = 15
"""As in Guo et al. 2017 and most papers since."""
_ROWS = 4096
"""Rows converted to float64 at a time, to limit memory."""


def class_accuracies(
    predictions: Mapping[str, Predictions], names: Sequence[str]
) -> tuple[ClassAccuracy, ...]:
    """The accuracy of each network ("teacher", "student" and perhaps "baseline") on each class that
    occurs; empty without labels.
    """
    rows = list(predictions.values())
    if not all(row.is_labeled for row in rows):
        return ()
    labels_N = rows[0].labels_N
    counts_K = labels_N.bincount(minlength=len(names)).tolist()
    right = {
        network: labels_N[row.correct_N].bincount(minlength=len(names)).tolist()
        for network, row in predictions.items()
    }
    shares = {
        k: {network: share(right_K[k], n) for network, right_K in right.items()}
        for k, n in enumerate(counts_K)
        if n
    }
    return tuple(ClassAccuracy(name=names[k], **by_network) for k, by_network in shares.items())


def calibration(
    predictions: Predictions, kind: OutputKind = "classes", num_bins: int = _NUM_BINS
) -> Calibration | None:
    """Expected calibration error, or None without labels. The confidence is the probability of the
    predicted class.

    Source: Guo et al. 2017 (arXiv 1706.04599), eq. 3, with bins (low, high] of equal width; empty
    bins are left out.
    """
    if not predictions.is_labeled:
        return None
    confidence_N, correct_N = _confidence(predictions, kind), predictions.correct_N
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    place_N = torch.bucketize(confidence_N, edges[1:-1])
    n_M = place_N.bincount(minlength=num_bins)
    confidence_M = place_N.bincount(confidence_N, num_bins) / n_M
    accuracy_M = place_N.bincount(correct_N.double(), num_bins) / n_M
    gaps_M = (n_M * (accuracy_M - confidence_M).abs()).nan_to_num()
    bins = tuple(
        CalibrationBin(
            low=float(edges[m]),
            high=float(edges[m + 1]),
            confidence=float(confidence_M[m]),
            accuracy=share(int(correct_N[place_N == m].sum()), int(n_M[m])),
        )
        for m in n_M.nonzero().flatten().tolist()
    )
    return Calibration(ece=float(gaps_M.sum()) / len(correct_N), n=len(correct_N), bins=bins)


def disagreements(
    teacher: Predictions, student: Predictions, names: Sequence[str], most: int = 20
) -> tuple[Disagreement, ...]:
    """The pairs of different classes that teacher and student predict for the same image, the most
    frequent first; at most `most`.
    """
    size = teacher.logits_NK.shape[1]
    differs_N = teacher.choices_N != student.choices_N
    pair_N = teacher.choices_N * size + student.choices_N
    pairs_P, counts_P = pair_N[differs_N].unique(return_counts=True)
    order = counts_P.argsort(descending=True, stable=True)[:most]
    found = []
    for pair, count in zip(pairs_P[order].tolist(), counts_P[order].tolist(), strict=True):
        rows_N = differs_N & (pair_N == pair)
        found.append(
            Disagreement(
                teacher=names[pair // size],
                student=names[pair % size],
                n=count,
                teacher_right=_num_right(teacher, rows_N),
                student_right=_num_right(student, rows_N),
            )
        )
    return tuple(found)


def doubts(
    teacher: Predictions,
    student: Predictions,
    names: Sequence[str],
    kind: OutputKind = "classes",
    most: int = 12,
) -> tuple[Doubt, ...]:
    """The `most` images with the largest KL(teacher || student), the largest first."""
    kl_N = divergence(teacher, student)
    teacher_N, student_N = _confidence(teacher, kind), _confidence(student, kind)
    return tuple(
        Doubt(
            id=int(teacher.ids_N[index]),
            kl=float(kl_N[index]),
            label=names[label] if (label := int(teacher.labels_N[index])) >= 0 else None,
            teacher=names[int(teacher.choices_N[index])],
            student=names[int(student.choices_N[index])],
            teacher_confidence=float(teacher_N[index]),
            student_confidence=float(student_N[index]),
        )
        for index in kl_N.argsort(descending=True, stable=True)[:most].tolist()
    )


def _confidence(predictions: Predictions, kind: OutputKind) -> Tensor:
    """The probability of the predicted class of each image, float64."""
    largest_N1 = predictions.logits_NK.amax(dim=1, keepdim=True).double()
    if kind == "labels":
        return largest_N1.sigmoid().squeeze(1)
    # The largest of a softmax is 1 / sum exp(logit - largest): no float64 copy of all logits.
    parts = zip(predictions.logits_NK.split(_ROWS), largest_N1.split(_ROWS), strict=True)
    return torch.cat([1 / (part.double() - top).exp().sum(dim=1) for part, top in parts])


def _num_right(predictions: Predictions, rows_N: Tensor) -> int | None:
    if not predictions.is_labeled:
        return None
    return int((predictions.correct_N & rows_N).sum())
