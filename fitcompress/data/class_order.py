"""Class order: labels as indices into a network's outputs.

Class folders are numbered in the order of their names, a network's outputs as its authors chose. If
the network's class names are known, the labels follow them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from fitcompress.data.bundle import DataBundle
from fitcompress.data.images import Images
from fitcompress.data.sampling import Indices
from fitcompress.errors import DataError, near_misses

__all__ = ["match_classes"]


def match_classes(bundle: DataBundle, names: tuple[str, ...]) -> DataBundle:
    """The same images with labels that are indices into `names`, the classes of a network.

    The data may lack some of the network's classes. The bundle is returned unchanged if it has no
    class names or if `names` is empty.

    Raises:
        DataError: a class of the data is not among `names`, or a name is repeated.
    """
    if not names or bundle.class_names is None or bundle.class_names == names:
        return bundle
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"matching classes: expected each of the network's class names once, got '{twice[0]}' "
            f"{names.count(twice[0])} times",
            code="class-name-repeated",
            advice="Correct the class map (--class-map).",
            class_name=twice[0],
        )
    unknown = [name for name in bundle.class_names if name not in names]
    if unknown:
        raise DataError(
            f"matching classes: expected only classes that the network has, got "
            f"{len(unknown)} unknown, such as '{unknown[0]}'",
            code="class-unknown",
            advice=near_misses(unknown[0], names) or "Correct the class map (--class-map).",
            unknown=unknown,
        )
    new_labels = np.array([names.index(name) for name in bundle.class_names], dtype=np.int64)
    parts: dict[str, Any] = {
        part: _Relabeled(getattr(bundle, part), new_labels)
        for part in ("train", "held_out", "evaluation")
    }
    return replace(bundle, **parts, class_names=names, num_classes=len(names))


@dataclass(frozen=True, eq=False)
class _Relabeled:
    """A collection of images with other labels."""

    images: Images
    new_labels: Indices
    """By old label."""

    @property
    def labels(self) -> Indices:
        old = self.images.labels
        new: Indices = np.where(old >= 0, self.new_labels[old], -1)
        return new

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.image_size

    @property
    def num_bytes(self) -> int:
        return self.images.num_bytes

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        return self.images.load(index)
