"""Labels in the order of a network's outputs. Layer: loading.

Class folders are numbered by their names, a network's outputs as whoever trained it chose. Where
the network's names are known, the labels follow them.
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

    The data may lack some of the network's classes. A bundle without class names is given back as
    it is, and so is any bundle when `names` is empty.

    Raises:
        DataError: a class of the data that is not among `names`, or a name that comes twice.
    """
    if not names or bundle.class_names is None or bundle.class_names == names:
        return bundle
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"matching classes: expected each of the network's class names once, got '{twice[0]}' "
            f"{names.count(twice[0])} times",
            advice="correct the class map",
        )
    unknown = [name for name in bundle.class_names if name not in names]
    if unknown:
        raise DataError(
            f"matching classes: expected the data's classes among the network's {len(names)}, got "
            f"{len(unknown)} others, such as '{unknown[0]}'",
            advice=near_misses(unknown[0], names) or "correct the class map",
        )
    places = np.array([names.index(name) for name in bundle.class_names], dtype=np.int64)
    parts: dict[str, Any] = {
        part: _Relabelled(getattr(bundle, part), places)
        for part in ("train", "held_out", "evaluation")
    }
    return replace(bundle, **parts, class_names=names, num_classes=len(names))


@dataclass(frozen=True, eq=False)
class _Relabelled:
    """The same images with other labels."""

    images: Images
    places: Indices
    """New label of each old one."""

    @property
    def labels(self) -> Indices:
        old = self.images.labels
        new: Indices = np.where(old >= 0, self.places[old], -1)
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
