"""Predictions of a network, and their accuracy and agreement.

Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fitcompress.atomic import atomic_path
from fitcompress.evaluation.significance import paired_test, share
from fitcompress.modes import evaluating
from fitcompress.records.measurements import Agreement, PairedTest, Share

__all__ = [
    "Predictions",
    "accuracy",
    "agreement",
    "divergence",
    "is_near_chance",
    "mcnemar",
    "predict",
    "save_predictions",
    "size_bytes",
]


class _Batch(Protocol):
    @property
    def images(self) -> Tensor: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def ids(self) -> Tensor: ...


@dataclass(frozen=True)
class Predictions:
    """The outputs of a network for every image of a split, on the CPU."""

    logits_NK: Tensor
    """float32; the first output of a network with several."""
    labels_N: Tensor
    """int64, -1 if unknown."""
    ids_N: Tensor
    """int64: the image of each row."""

    @property
    def is_labeled(self) -> bool:
        """Whether every image has a label."""
        return len(self.labels_N) > 0 and bool((self.labels_N >= 0).all())

    @property
    def choices_N(self) -> Tensor:
        """int64: the class with the largest logit."""
        return self.logits_NK.argmax(dim=1)

    @property
    def correct_N(self) -> Tensor:
        """bool: where the largest logit is the label's."""
        return self.choices_N == self.labels_N


def predict(
    network: Callable[[Tensor], Tensor],
    loader: Iterable[_Batch],
    device: torch.device | str = "cpu",
) -> Predictions:
    """The network's outputs for all batches of `loader`.

    `network` takes the loader's uint8 images, so it contains its own preprocessing. It runs in eval
    mode; its mode is restored afterwards.
    """
    logits, labels, ids = [], [], []
    with evaluating(network), torch.no_grad():
        for batch in loader:
            output = network(batch.images.to(device))
            first = output[0] if isinstance(output, (tuple, list)) else output
            logits.append(first.float().cpu())
            labels.append(batch.labels.cpu())
            ids.append(batch.ids.cpu())
    assert logits, "a split without images"
    return Predictions(torch.cat(logits), torch.cat(labels), torch.cat(ids))


def accuracy(predictions: Predictions) -> Share | None:
    """Top-1 accuracy, or None without labels."""
    if not predictions.is_labeled:
        return None
    return share(int(predictions.correct_N.sum()), len(predictions.labels_N))


def agreement(teacher: Predictions, student: Predictions) -> Agreement:
    """How often both predict the same class. Both must hold the same images in the same order."""
    divergence_N = divergence(teacher, student)
    same_N = teacher.choices_N == student.choices_N
    same = share(int(same_N.sum()), len(same_N))
    return Agreement(**vars(same), kl=float(divergence_N.mean()))


def divergence(teacher: Predictions, student: Predictions) -> Tensor:
    """KL(teacher || student) of each image in nats, float64. Both must hold the same images in the
    same order.
    """
    _check_same_images(teacher, student)
    parts = zip(teacher.logits_NK.split(_ROWS), student.logits_NK.split(_ROWS), strict=True)
    return torch.cat([_divergence(*part) for part in parts])


def mcnemar(first: Predictions, second: Predictions) -> PairedTest | None:
    """McNemar's test of the accuracies of two networks on the same images, or None without labels.

    See `significance.paired_test`.
    """
    _check_same_images(first, second)
    if not (first.is_labeled and second.is_labeled):
        return None
    only_first = int((first.correct_N & ~second.correct_N).sum())
    only_second = int((second.correct_N & ~first.correct_N).sum())
    return paired_test(only_first, only_second, len(first.labels_N))


def is_near_chance(measured: Share, num_classes: int) -> bool:
    """Whether an accuracy is hardly better than guessing among `num_classes`.

    The threshold is twice chance, or a tenth of the way from chance to 1 if that is less (0.55 for
    two classes, 0.19 for ten, 0.002 for a thousand). The accuracy must be below it, and so must
    its whole interval, unless the interval includes chance: a good teacher that is measured on a
    few images raises no alarm.
    """
    chance = 1 / num_classes
    threshold = min(2 * chance, chance + 0.1 * (1 - chance))
    return measured.top1 < threshold and (measured.high < threshold or measured.low <= chance)


def size_bytes(network: nn.Module) -> int:
    """Bytes of the network's state as float32; shared tensors count once."""
    by_place = {
        (t.data_ptr() or id(t), t.shape): t for t in network.state_dict(keep_vars=True).values()
    }
    return sum(
        t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in by_place.values()
    )


def save_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write the predictions of the named networks to one safetensors file, atomically."""
    tensors = {
        f"{name}.{part}": tensor.contiguous().clone()
        for name, rows in predictions.items()
        for part, tensor in zip(_PARTS, (rows.logits_NK, rows.labels_N, rows.ids_N), strict=True)
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


_PARTS = ("logits", "labels", "ids")
_ROWS = 4096
"""Rows converted to float64 at a time, to limit memory."""


def _divergence(teacher_NK: Tensor, student_NK: Tensor) -> Tensor:
    teacher_NK = teacher_NK.double().log_softmax(dim=1)
    student_NK = student_NK.double().log_softmax(dim=1)
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(dim=1)


def _check_same_images(first: Predictions, second: Predictions) -> None:
    assert torch.equal(first.ids_N, second.ids_N), "predictions for different images"
