"""Accuracy, agreement and size against independent sources: scipy, closed forms, naive loops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fitcompress.evaluation.accuracy import (
    Predictions,
    accuracy,
    agreement,
    is_near_chance,
    mcnemar,
    predict,
    save_predictions,
    size_bytes,
)
from fitcompress.evaluation.significance import paired_test, wilson_interval
from fitcompress.modes import evaluating
from fitcompress.records.measurements import Share


@dataclass(frozen=True)
class FakeBatch:
    images: Tensor
    labels: Tensor
    ids: Tensor


def predictions_of(choices: list[int], labels: list[int], num_classes: int = 3) -> Predictions:
    """Predictions that choose the given classes."""
    logits_NK = nn.functional.one_hot(torch.tensor(choices), num_classes).float()
    return Predictions(logits_NK, torch.tensor(labels), torch.arange(len(labels)))


def test_accuracy_counts_the_largest_logit() -> None:
    measured = accuracy(predictions_of([0, 1, 2, 2], [0, 1, 2, 0]))
    low, high = wilson_interval(3, 4)
    assert measured == Share(top1=0.75, low=low, high=high, n=4)


def test_accuracy_is_unknown_without_labels() -> None:
    assert accuracy(predictions_of([0, 1], [0, -1])) is None
    assert mcnemar(predictions_of([0], [-1]), predictions_of([0], [-1])) is None


def test_agreement_is_the_share_of_equal_choices_and_the_mean_kl() -> None:
    teacher, student = predictions_of([0, 1, 2], [0, 0, 0]), predictions_of([0, 1, 0], [0, 0, 0])
    measured = agreement(teacher, student)
    assert measured.top1 == pytest.approx(2 / 3)
    # One row of three differs: softmax of (0, 0, 1) against (1, 0, 0), p = e / (e + 2).
    p, q = math.e / (math.e + 2), 1 / (math.e + 2)
    assert measured.kl == pytest.approx((p - q) / 3, rel=1e-6)


def test_agreement_of_a_network_with_itself_is_perfect() -> None:
    rows = Predictions(torch.randn(6, 4), torch.zeros(6, dtype=torch.long), torch.arange(6))
    measured = agreement(rows, rows)
    assert (measured.top1, measured.kl) == (1.0, pytest.approx(0.0, abs=1e-12))


def test_predictions_about_different_images_are_not_compared() -> None:
    one = predictions_of([0, 1], [0, 1])
    other = Predictions(one.logits_NK, one.labels_N, one.ids_N.flip(0))
    with pytest.raises(AssertionError, match="different images"):
        agreement(one, other)


def test_mcnemar_counts_the_images_that_only_one_has_right() -> None:
    labels = [1, 1, 1, 1, 0, 0]
    first = predictions_of([1, 1, 0, 0, 0, 1], labels)
    second = predictions_of([0, 1, 1, 1, 1, 1], labels)
    assert mcnemar(first, second) == paired_test(only_first=2, only_second=2, n=6)


@pytest.mark.parametrize(
    ("num_correct", "n", "num_classes", "expected"),
    [
        (200, 2000, 10, True),  # guessing
        (0, 2000, 10, True),  # classes in another order
        (260, 2000, 10, True),  # above chance for certain, and still of no use
        (1800, 2000, 10, False),
        (3, 2000, 1000, True),
        (300, 2000, 1000, False),  # a weak teacher of a hard task
        (99, 100, 2, False),  # twice chance would be all of it
        (50, 100, 2, True),
        (6, 8, 2, False),  # few images raise no alarm
    ],
)
def test_near_chance(num_correct: int, n: int, num_classes: int, expected: bool) -> None:
    low, high = wilson_interval(num_correct, n)
    measured = Share(top1=num_correct / n, low=low, high=high, n=n)
    assert is_near_chance(measured, num_classes) is expected


def test_predict_runs_in_eval_mode_and_leaves_every_module_as_it_was() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout(0.9), nn.BatchNorm1d(3))
    network[3].eval()
    images = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8)
    batches = [
        FakeBatch(images[rows], torch.tensor(rows) % 3, torch.tensor(rows))
        for rows in ([0, 1, 2], [3, 4])
    ]
    measured = predict(_AsFloat(network), batches)
    expected = network[1](images.flatten(1).float()) / math.sqrt(1 + 1e-5)
    assert torch.allclose(measured.logits_NK, expected.detach(), rtol=1e-5)
    assert measured.ids_N.tolist() == [0, 1, 2, 3, 4]
    assert [module.training for module in network] == [True, True, True, False]
    assert not measured.logits_NK.requires_grad


class _AsFloat(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.float())


def test_eval_mode_ends_when_the_block_raises() -> None:
    network = nn.Dropout()
    with pytest.raises(ValueError, match="stop"), evaluating(network):
        raise ValueError("stop")
    assert network.training


def test_predictions_are_stored_by_network_and_part(tmp_path: Path) -> None:
    teacher, student = predictions_of([0, 1], [0, 1]), predictions_of([1, 1], [0, 1])
    save_predictions(tmp_path / "p.safetensors", {"teacher": teacher, "student": student})
    stored = load_file(tmp_path / "p.safetensors")
    assert len(stored) == 6
    for name, rows in (("teacher", teacher), ("student", student)):
        assert torch.equal(stored[f"{name}.logits"], rows.logits_NK)
        assert torch.equal(stored[f"{name}.labels"], rows.labels_N)
        assert torch.equal(stored[f"{name}.ids"], rows.ids_N)


def test_size_counts_float32_and_shared_tensors_once() -> None:
    one = nn.Linear(3, 3, bias=False)
    network = nn.Sequential(one, one, nn.BatchNorm1d(3)).half()
    # 9 shared weights, 4 x 3 of the norm as float32, one int64 counter.
    assert size_bytes(network) == 4 * (9 + 12) + 8
