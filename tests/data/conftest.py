"""Small image folders and arrays that the tests of the data make for themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fitcompress.data.images import ArrayImages
from fitcompress.interface import InputSpec

WriteImages = Callable[..., list[Path]]


@pytest.fixture
def write_images() -> WriteImages:
    """Writes `num` noise images into a folder and gives their paths."""

    def write(
        folder: Path,
        num: int,
        *,
        size: tuple[int, int] = (10, 8),
        suffix: str = ".png",
        seed: int = 0,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng([seed, num])
        paths = [folder / f"{i:03d}{suffix}" for i in range(num)]
        for path in paths:
            Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
        return paths

    return write


@pytest.fixture
def class_folders(write_images: WriteImages) -> Callable[..., Path]:
    """Writes one tree of class folders: name -> number of images."""

    def write(root: Path, **num_of: int) -> Path:
        for seed, (name, num) in enumerate(num_of.items()):
            write_images(root / name, num, seed=seed)
        return root

    return write


@pytest.fixture
def array_images() -> Callable[..., ArrayImages]:
    """Noise images in memory, with three classes taking turns."""

    def make(num: int = 24, size: tuple[int, int] = (16, 16), channels: int = 3) -> ArrayImages:
        shape = (num, *size) if channels == 1 else (num, *size, channels)
        pixels = np.random.default_rng(num).integers(0, 256, shape, dtype=np.uint8)
        return ArrayImages(pixels, np.arange(num, dtype=np.int64) % 3)

    return make


@pytest.fixture
def spec_of() -> Callable[..., InputSpec]:
    """An input specification of some shape, with zero mean and unit std."""

    def make(channels: int, height: int, width: int, **settings: object) -> InputSpec:
        values = (0.0,) * channels, (1.0,) * channels
        return InputSpec(shape=(channels, height, width), mean=values[0], std=values[1], **settings)

    return make
