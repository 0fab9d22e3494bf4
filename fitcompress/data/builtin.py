"""The built-in data set: a balanced sample of Fashion-MNIST that ships with the package.

10,000 training and 2,000 test images, 28 x 28, gray, 10 classes. MIT licence, Copyright 2017
Zalando SE (see `fashion_mnist/LICENSE`). Packed by `examples/make_builtin_data.py`.
"""

from __future__ import annotations

import functools
import io
import json
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from fitcompress.data.images import ArrayImages

__all__ = ["BUILTIN", "builtin_class_names", "builtin_name", "load_builtin"]

BUILTIN = "builtin"
"""Name of the built-in data set as a data source."""
_FOLDER = resources.files(__package__) / "fashion_mnist"


def builtin_name() -> str:
    """The name of the data set, for reports."""
    return str(_index()["name"])


def builtin_class_names() -> tuple[str, ...]:
    """Names of the ten classes, in the order of the labels."""
    return tuple(_index()["classes"])


@functools.cache
def load_builtin(split: str) -> ArrayImages:
    """The images of the split "train" or "test"; image i has label i modulo 10."""
    index = _index()
    entry = index["splits"][split]
    with Image.open(io.BytesIO((_FOLDER / entry["file"]).read_bytes())) as image:
        mosaic = np.asarray(image.convert("RGB"))[:, :, 0]  # the three channels are equal
    height, width = index["image_size"]
    num_columns, num_classes = index["num_columns"], len(index["classes"])
    grid = mosaic.reshape(-1, height, num_columns, width).transpose(0, 2, 1, 3)
    by_class = grid.reshape(num_classes, entry["num_per_class"], height, width)
    pixels = np.ascontiguousarray(by_class.swapaxes(0, 1)).reshape(-1, height, width)
    pixels.flags.writeable = False  # the cached array is shared by all callers
    return ArrayImages(pixels, np.arange(len(pixels), dtype=np.int64) % num_classes)


@functools.cache
def _index() -> dict[str, Any]:
    index: dict[str, Any] = json.loads((_FOLDER / "index.json").read_text())
    return index
