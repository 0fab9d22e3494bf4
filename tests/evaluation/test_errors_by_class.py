"""Classes, confidence and disagreement against scikit-learn, scipy and naive loops."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from scipy.stats import binomtest, entropy
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, recall_score

from fitcompress.evaluation.accuracy import Predictions
from fitcompress.evaluation.errors_by_class import (
    calibration,
    class_accuracies,
    disagreements,
    doubts,
)

NAMES = ("cat", "dog", "eel", "fox")


def some_predictions(seed: int, n: int = 400, labelled: bool = True) -> Predictions:
    """Random scores that lean to the labels; those are the same for every seed."""
    labels_N = torch.arange(n) % 3  # nothing is a fox
    generator = torch.Generator().manual_seed(seed)
    logits_NK = 2 * torch.randn(n, len(NAMES), generator=generator)
    logits_NK[torch.arange(n), labels_N] += 1.5
    ids_N = torch.arange(n) + 1000
    return Predictions(logits_NK, labels_N if labelled else torch.full((n,), -1), ids_N)


TEACHER, STUDENT = some_predictions(1), some_predictions(2)
UNKNOWN = some_predictions(1, labelled=False)


# --- class by class ----------------------------------------------------------------------------


def test_class_accuracies_are_sklearns_recalls_with_scipys_intervals() -> None:
    rows = class_accuracies({"teacher": TEACHER, "student": STUDENT}, NAMES)
    assert [row.name for row in rows] == ["cat", "dog", "eel"], "no fox occurs"
    for name, predictions in (("teacher", TEACHER), ("student", STUDENT)):
        recalls = recall_score(
            predictions.labels_N, predictions.logits_NK.argmax(1), average=None, labels=[0, 1, 2]
        )
        for row, recall, n in zip(rows, recalls, (134, 133, 133), strict=True):
            interval = binomtest(round(recall * n), n).proportion_ci(method="wilson")
            assert getattr(row, name).n == n
            assert getattr(row, name).top1 == pytest.approx(recall)
            assert (getattr(row, name).low, getattr(row, name).high) == pytest.approx(
                (interval.low, interval.high)
            )


def test_there_are_no_class_accuracies_without_labels() -> None:
    assert class_accuracies({"teacher": UNKNOWN, "student": UNKNOWN}, NAMES) == ()


# --- calibration -------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [15, 10, 1])
def test_the_bins_are_those_of_sklearns_calibration_curve(num_bins: int) -> None:
    measured = calibration(TEACHER, num_bins=num_bins)
    assert measured is not None
    probabilities_NK = softmax(TEACHER.logits_NK.double().numpy(), axis=1)
    expected = calibration_curve(
        TEACHER.correct_N.numpy(), probabilities_NK.max(axis=1), n_bins=num_bins
    )
    bins = measured.bins
    assert [row.accuracy.top1 for row in bins] == pytest.approx(list(expected[0]))
    assert [row.confidence for row in bins] == pytest.approx(list(expected[1]))


def test_ece_is_equation_3_of_guo_et_al() -> None:
    """A naive loop over bins (m - 1, m] / M and images."""
    measured = calibration(STUDENT)
    assert measured is not None
    probabilities_NK = softmax(STUDENT.logits_NK.double().numpy(), axis=1)
    confidence_N, right_N = probabilities_NK.max(axis=1), STUDENT.correct_N.numpy()
    ece = 0.0
    for m in range(1, 16):
        rows = [i for i, c in enumerate(confidence_N) if (m - 1) / 15 < c <= m / 15]
        if rows:
            gap = abs(np.mean(right_N[rows]) - np.mean(confidence_N[rows]))
            ece += len(rows) / len(right_N) * gap
    assert measured.ece == pytest.approx(ece)
    assert sum(row.accuracy.n for row in measured.bins) == measured.n == 400


def test_ece_by_hand() -> None:
    # Two images at confidence 3/4, one of them right; two that are sure (to 1e-9) and right.
    logits_NK = torch.tensor([[3.0, 1.0], [3.0, 1.0], [4e9, 0], [0, 4e9]])
    logits_NK[:2] = torch.tensor([[3.0, 1.0]]).log()
    measured = calibration(
        Predictions(logits_NK, torch.tensor([0, 1, 0, 1]), torch.arange(4)), num_bins=2
    )
    assert measured is not None
    # All are in the upper half: accuracy 3/4, confidence (3/4 + 3/4 + 1 + 1) / 4.
    assert measured.ece == pytest.approx(float(Fraction(7, 8) - Fraction(3, 4)))
    (only,) = measured.bins
    assert (only.low, only.high, only.accuracy.n) == (0.5, 1.0, 4)


def test_who_says_what_is_true_and_is_sure_is_calibrated() -> None:
    logits_NK = 1e4 * torch.eye(4)
    measured = calibration(Predictions(logits_NK, torch.arange(4), torch.arange(4)))
    assert measured is not None
    assert measured.ece == 0


def test_of_independent_labels_the_confidence_is_the_sigmoid() -> None:
    measured = calibration(TEACHER, "labels", num_bins=1)
    assert measured is not None
    expected = expit(TEACHER.logits_NK.double().numpy()).max(axis=1).mean()
    assert measured.bins[0].confidence == pytest.approx(expected)


def test_calibration_is_unknown_without_labels() -> None:
    assert calibration(UNKNOWN) is None


# --- where the student leaves the teacher ------------------------------------------------------


def test_disagreements_are_sklearns_confusions_without_the_diagonal() -> None:
    found = disagreements(TEACHER, STUDENT, NAMES)
    table = confusion_matrix(TEACHER.choices_N, STUDENT.choices_N, labels=range(4))
    np.fill_diagonal(table, 0)
    counted = {(row.teacher, row.student): row.n for row in found}
    expected = {
        (NAMES[t], NAMES[s]): table[t, s] for t in range(4) for s in range(4) if table[t, s]
    }
    assert counted == expected
    counts = [row.n for row in found]
    assert counts == sorted(counts, reverse=True)


def test_disagreements_say_who_was_right() -> None:
    found = disagreements(TEACHER, STUDENT, NAMES)
    for row in found:
        rows = [
            (t, s, label)
            for t, s, label in zip(
                TEACHER.choices_N.tolist(),
                STUDENT.choices_N.tolist(),
                TEACHER.labels_N.tolist(),
                strict=True,
            )
            if (NAMES[t], NAMES[s]) == (row.teacher, row.student)
        ]
        assert row.teacher_right == sum(t == label for t, _, label in rows)
        assert row.student_right == sum(s == label for _, s, label in rows)


def test_only_the_most_frequent_disagreements_are_kept() -> None:
    every = disagreements(TEACHER, STUDENT, NAMES)
    assert disagreements(TEACHER, STUDENT, NAMES, most=3) == every[:3]
    assert disagreements(TEACHER, TEACHER, NAMES) == ()


def test_without_labels_nobody_is_right() -> None:
    found = disagreements(UNKNOWN, some_predictions(2, labelled=False), NAMES)
    assert found
    assert {row.teacher_right for row in found} == {None}


def test_doubts_are_the_largest_of_scipys_divergences() -> None:
    found = doubts(TEACHER, STUDENT, NAMES, most=5)
    teacher_NK, student_NK = (
        softmax(rows.logits_NK.double().numpy(), axis=1) for rows in (TEACHER, STUDENT)
    )
    kl_N = entropy(teacher_NK, student_NK, axis=1)
    order = np.argsort(-kl_N)[:5]
    assert [row.id for row in found] == [1000 + index for index in order]
    assert [row.kl for row in found] == pytest.approx(list(kl_N[order]))
    assert [row.student for row in found] == [NAMES[k] for k in student_NK[order].argmax(1)]
    assert [row.teacher_confidence for row in found] == pytest.approx(
        list(teacher_NK[order].max(1))
    )
    assert found[0].label == NAMES[order[0] % 3]


def test_a_doubt_about_an_unlabelled_image_has_no_label() -> None:
    assert doubts(UNKNOWN, STUDENT, NAMES, most=1)[0].label is None
