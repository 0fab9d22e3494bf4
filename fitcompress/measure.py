"""What a network is worth: its predictions, how sure its accuracy is, and its size.

Layer: torch and `rundir`; no timm. Time and memory are in `speed`.
Shape suffixes: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fitcompress.rundir import atomic_path

__all__ = [
    "Predictions",
    "accuracy",
    "agreement",
    "evaluating",
    "is_near_chance",
    "load_predictions",
    "mcnemar",
    "predict",
    "save_predictions",
    "size_bytes",
    "wilson_interval",
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
    def is_labelled(self) -> bool:
        """Whether every image has a label."""
        return len(self.labels_N) > 0 and bool((self.labels_N >= 0).all())

    @property
    def correct_N(self) -> Tensor:
        """bool: where the largest logit is the label's."""
        return self.logits_NK.argmax(dim=1) == self.labels_N


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
    if not predictions.is_labelled:
        return None
    return _share(int(predictions.correct_N.sum()), len(predictions.labels_N))


def agreement(teacher: Predictions, student: Predictions) -> dict[str, float]:
    """How often both name the same class, with its 95 % interval.

    `kl` is the mean KL(teacher || student) in nats. Both must be about the same images in order.
    """
    _check_same_images(teacher, student)
    same_N = teacher.logits_NK.argmax(dim=1) == student.logits_NK.argmax(dim=1)
    teacher_NK = teacher.logits_NK.double().log_softmax(dim=1)
    student_NK = student.logits_NK.double().log_softmax(dim=1)
    kl_N = (teacher_NK.exp() * (teacher_NK - student_NK)).sum(dim=1)
    return {**_share(int(same_N.sum()), len(same_N)), "kl": float(kl_N.mean())}


def mcnemar(first: Predictions, second: Predictions) -> dict[str, float] | None:
    """Whether two networks differ in accuracy on the same images; None where labels are missing.

    `difference` is second minus first, with `low` and `high` its 95 % interval. `p_value` is exact
    and two-sided.

    Source: McNemar 1947, the exact binomial form: among the images that only one of the two has
    right, each is as likely to be that one. Interval: Agresti and Min 2005 (Statistics in Medicine
    24), half an image added to each of the four cells.
    """
    _check_same_images(first, second)
    if not (first.is_labelled and second.is_labelled):
        return None
    only_first = int((first.correct_N & ~second.correct_N).sum())
    only_second = int((second.correct_N & ~first.correct_N).sum())
    num_images = len(first.labels_N)
    low, high = _paired_interval(only_first, only_second, num_images)
    return {
        "difference": (only_second - only_first) / num_images,
        "low": low,
        "high": high,
        "p_value": _exact_sign_p(only_first, only_second),
        "only_first": only_first,
        "only_second": only_second,
        "n": num_images,
    }


def wilson_interval(num_correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound of a share that was observed as `num_correct` of `n`.

    Source: Wilson 1927, without continuity correction. Unlike the usual plus-minus it stays inside
    0..1 and holds for small `n`.

    >>> low, high = wilson_interval(8, 10)
    >>> round(low, 3), round(high, 3)
    (0.49, 0.943)
    """
    assert 0 <= num_correct <= n and n > 0, (num_correct, n)
    z = _normal_quantile(confidence)
    share = num_correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


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


@contextmanager
def evaluating(*networks: Any) -> Iterator[None]:
    """Eval mode inside the block; after it every single module is in the mode it was in.

    Callables that are no modules are left alone.
    """
    modules = [module for net in networks if isinstance(net, nn.Module) for module in net.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


_PARTS = ("logits", "labels", "ids")


def _share(num_correct: int, n: int) -> dict[str, float]:
    low, high = wilson_interval(num_correct, n)
    return {"top1": num_correct / n, "low": low, "high": high, "n": n}


def _normal_quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _exact_sign_p(one: int, other: int) -> float:
    """Two-sided p of a split `one` to `other` under a fair coin, in exact integers."""
    n = one + other
    term = tail = 1
    for k in range(min(one, other)):
        term = term * (n - k) // (k + 1)
        tail += term
    p_value: float = 2 * tail / 2**n
    return min(1.0, p_value)


def _paired_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    first, second, total = only_first + 0.5, only_second + 0.5, n + 2
    difference = (second - first) / total
    deviation = math.sqrt(first + second - (second - first) ** 2 / total) / total
    half = _normal_quantile(0.95) * deviation
    return max(-1.0, difference - half), min(1.0, difference + half)


def _check_same_images(first: Predictions, second: Predictions) -> None:
    assert torch.equal(first.ids_N, second.ids_N), "predictions about different images"
