"""What a network is worth: its predictions, how sure its accuracy is, and its size.

Layer: torch and `rundir`; no timm. Time and memory are in `speed`, where and how it errs in
`mistakes`.
Shape suffixes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fitcompress.atomic import atomic_path
from fitcompress.evaluation.significance import paired_test, share
from fitcompress.modes import evaluating

__all__ = [
    "Predictions",
    "accuracy",
    "agreement",
    "divergence",
    "is_near_chance",
    "load_predictions",
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
    """What a network says about each image of a split, on the CPU."""

    logits_NK: Tensor
    """float32; of a network with several outputs, the first."""
    labels_N: Tensor
    """int64, -1 where unknown."""
    ids_N: Tensor
    """int64, which image each row is about."""

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
    """The network's outputs on all batches of `loader`.

    `network` takes the loader's uint8 images as they are, so it holds its own preprocessing. It is
    put into eval mode for the while and left as it was.
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


def accuracy(predictions: Predictions) -> dict[str, float] | None:
    """Share of images whose label has the largest logit, with its 95 % interval.

    None where labels are missing.
    """
    if not predictions.is_labeled:
        return None
    return share(int(predictions.correct_N.sum()), len(predictions.labels_N))


def agreement(teacher: Predictions, student: Predictions) -> dict[str, float]:
    """How often both name the same class, with its 95 % interval.

    `kl` is the mean KL(teacher || student) in nats. Both must be about the same images in order.
    """
    divergence_N = divergence(teacher, student)
    same_N = teacher.choices_N == student.choices_N
    return {**share(int(same_N.sum()), len(same_N)), "kl": float(divergence_N.mean())}


def divergence(teacher: Predictions, student: Predictions) -> Tensor:
    """KL(teacher || student) of each image in nats, float64. Both must be about the same images in
    order.
    """
    _check_same_images(teacher, student)
    parts = zip(teacher.logits_NK.split(_ROWS), student.logits_NK.split(_ROWS), strict=True)
    return torch.cat([_divergence(*part) for part in parts])


def mcnemar(first: Predictions, second: Predictions) -> dict[str, float] | None:
    """Whether two networks differ in accuracy on the same images; None where labels are missing.

    See `significance.paired_test`.
    """
    _check_same_images(first, second)
    if not (first.is_labeled and second.is_labeled):
        return None
    only_first = int((first.correct_N & ~second.correct_N).sum())
    only_second = int((second.correct_N & ~first.correct_N).sum())
    return paired_test(only_first, only_second, len(first.labels_N))


def is_near_chance(measured: Mapping[str, float], num_classes: int) -> bool:
    """Whether a teacher with this `accuracy` does hardly better than guessing among `num_classes`.

    The mark is twice chance, or a tenth of the way from chance to perfect where that is less (two
    classes: 0.55; ten: 0.19; a thousand: 0.002). It is near chance when its accuracy is below the
    mark and nothing speaks against it: the whole interval is below the mark, or reaches down to
    chance. A few images of a good teacher therefore raise no alarm.
    """
    chance = 1 / num_classes
    mark = min(2 * chance, chance + 0.1 * (1 - chance))
    return measured["top1"] < mark and (measured["high"] < mark or measured["low"] <= chance)


def size_bytes(network: nn.Module) -> int:
    """Bytes of the network's state as float32; tensors that are shared count once."""
    by_place = {
        (t.data_ptr() or id(t), t.shape): t for t in network.state_dict(keep_vars=True).values()
    }
    return sum(
        t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in by_place.values()
    )


def save_predictions(path: Path, predictions: Mapping[str, Predictions]) -> None:
    """Write predictions by network name ("teacher", ...) to one safetensors file, atomically."""
    tensors = {
        f"{name}.{part}": tensor.contiguous().clone()
        for name, rows in predictions.items()
        for part, tensor in zip(_PARTS, (rows.logits_NK, rows.labels_N, rows.ids_N), strict=True)
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_predictions(path: Path) -> dict[str, Predictions]:
    """What `save_predictions` wrote."""
    tensors = load_file(path)
    names = sorted({key.rsplit(".", 1)[0] for key in tensors})
    return {name: Predictions(*(tensors[f"{name}.{part}"] for part in _PARTS)) for name in names}


_PARTS = ("logits", "labels", "ids")


_ROWS = 4096
"""At a time, where float64 would double what a large split takes."""


def _divergence(teacher_NK: Tensor, student_NK: Tensor) -> Tensor:
    teacher_NK = teacher_NK.double().log_softmax(dim=1)
    student_NK = student_NK.double().log_softmax(dim=1)
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(dim=1)


def _check_same_images(first: Predictions, second: Predictions) -> None:
    assert torch.equal(first.ids_N, second.ids_N), "predictions about different images"
