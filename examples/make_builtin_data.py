#!/usr/bin/env python3
"""Pack the built-in data set: a balanced sample of Fashion-MNIST as two lossless WebP mosaics.

    python examples/make_builtin_data.py /usr/share/datasets/fashion-mnist
    fitcompress/data/fashion_mnist

The first argument is a folder with the four `*-ubyte.gz` files of Fashion-MNIST
(https://github.com/zalandoresearch/fashion-mnist, Debian package `dataset-fashion-mnist`); the
second is where `train.webp`, `test.webp` and `index.json` are written. SEED alone decides which
images are taken, so the pixels are always the same (`index.json` holds their SHA-256). The bytes of
the files depend on the version of libwebp. Takes about two minutes on one core.

A mosaic has 100 images of 28 x 28 per row, class by class, in the order of the source within a
class.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SEED = 0
NUM_COLUMNS = 100
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SPLITS = {"train": ("train", 1000), "test": ("t10k", 200)}
"""Split -> (stem of the idx files, images of each class)."""


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array in a gzipped idx file of unsigned bytes (format:
    http://yann.lecun.com/exdb/mnist)."""
    raw = gzip.decompress(path.read_bytes())
    num_dims = raw[3]
    shape = np.frombuffer(raw, ">u4", count=num_dims, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_dims).reshape(shape)


def choose_images(
    labels: np.ndarray[Any, np.dtype[np.uint8]], num_per_class: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Indices of the first `num_per_class` images of each class in a random order, grouped by
    class, ascending within each."""
    # The raw output of a bit generator never changes between versions of numpy; what
    # Generator.permutation makes of it may.
    rank = np.argsort(np.random.Philox(key=SEED).random_raw(len(labels)), kind="stable")
    chosen = [np.sort(rank[labels[rank] == label][:num_per_class]) for label in range(len(CLASSES))]
    return np.concatenate(chosen)


def build_mosaic(
    images: np.ndarray[Any, np.dtype[np.uint8]],
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The images, shape (N, H, W), as one picture with NUM_COLUMNS images per row."""
    num, height, width = images.shape
    rows = num // NUM_COLUMNS
    grid = images.reshape(rows, NUM_COLUMNS, height, width).transpose(0, 2, 1, 3)
    return grid.reshape(rows * height, NUM_COLUMNS * width)


def pack_split(source: Path, target: Path, split: str) -> dict[str, Any]:
    """Writes one mosaic and returns its entry of the index."""
    stem, num_per_class = SPLITS[split]
    labels = read_idx(source / f"{stem}-labels-idx1-ubyte.gz")
    images = read_idx(source / f"{stem}-images-idx3-ubyte.gz")[choose_images(labels, num_per_class)]
    name = f"{split}.webp"
    picture = Image.fromarray(build_mosaic(images)).convert("RGB")
    picture.save(target / name, lossless=True, quality=100, method=6)
    return {
        "file": name,
        "num_per_class": num_per_class,
        "pixels_sha256": hashlib.sha256(images.tobytes()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with the idx files")
    parser.add_argument("target", type=Path, help="output folder")
    arguments = parser.parse_args()
    arguments.target.mkdir(parents=True, exist_ok=True)
    index = {
        "name": "Fashion-MNIST (balanced sample)",
        "source": "https://github.com/zalandoresearch/fashion-mnist",
        "licence": "MIT, see LICENSE",
        "seed": SEED,
        "image_size": [28, 28],
        "num_columns": NUM_COLUMNS,
        "classes": list(CLASSES),
        "splits": {
            split: pack_split(arguments.source, arguments.target, split) for split in SPLITS
        },
    }
    (arguments.target / "index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
