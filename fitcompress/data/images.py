"""Collections of images at their native size, and decoding of single images.

Every source (folder, timm data set, built-in set) becomes an `Images`: labels known without
decoding, and images decoded one by one, upright, as 8-bit RGB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps

from fitcompress.data.sampling import Indices
from fitcompress.errors import DataError

__all__ = [
    "READ_ERRORS",
    "ArrayImages",
    "DecodingError",
    "FileImages",
    "Images",
    "Subset",
    "find_fault",
    "read_rgb",
    "to_rgb",
]

READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""Exceptions that Pillow's format plugins raise for damaged files."""


class DecodingError(DataError):
    """An image that cannot be decoded, found during training.

    The DataLoader re-raises an error of a worker process as its class called with the text of the
    whole traceback (torch 2.15, `ExceptionWrapper.reraise`); only the end of that is kept.
    """

    def __init__(
        self,
        text: str,
        *,
        code: str = "image-undecodable",
        advice: str = "Remove or replace the image, then resume the run.",
        **facts: Any,
    ) -> None:
        _, start, end = text.rpartition("decoding image ")
        super().__init__((start + end).strip(), code=code, advice=advice, **facts)


class Images(Protocol):
    """A collection of images with labels."""

    @property
    def labels(self) -> Indices:
        """Class of each image, -1 for unlabeled ones."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Median height and width, in pixels."""

    @property
    def num_bytes(self) -> int:
        """Size of all images on disk or in memory; 0 if unknown."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """One image: upright, mode RGB, native size."""


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of equal size in memory."""

    pixels: npt.NDArray[np.uint8]
    """Shape (N, H, W) for gray images, (N, H, W, 3) for RGB."""
    labels: Indices

    @property
    def image_size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes

    def __len__(self) -> int:
        return len(self.pixels)

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index]).convert("RGB")


@dataclass(frozen=True, eq=False)
class FileImages:
    """Images in files, decoded on demand."""

    paths: tuple[Path, ...]
    labels: Indices
    image_size: tuple[int, int]
    num_bytes: int

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> Image.Image:
        """Raises DecodingError if the file cannot be decoded."""
        path = self.paths[index]
        try:
            return read_rgb(path)
        except READ_ERRORS as error:
            raise DecodingError(f"decoding image '{path}': {error}") from error


@dataclass(frozen=True, eq=False)
class Subset:
    """Images of another collection, selected by `indices`."""

    images: Images
    indices: Indices

    @property
    def labels(self) -> Indices:
        return self.images.labels[self.indices]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.images.image_size

    @property
    def num_bytes(self) -> int:
        return round(self.images.num_bytes * len(self) / max(1, len(self.images)))

    def __len__(self) -> int:
        return len(self.indices)

    def load(self, index: int) -> Image.Image:
        return self.images.load(int(self.indices[index]))


def read_rgb(file: Path | IO[bytes]) -> Image.Image:
    """The image in a file, turned upright by its EXIF orientation, in mode RGB.

    Transparency is dropped, as in torchvision and timm. 16-bit gray keeps its high byte, and floats
    are read as 0..1 (Pillow would clip both to white). Only the first frame of an animation is
    read.
    """
    with Image.open(file) as image:
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image upright and in mode RGB (see `read_rgb`)."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        high_bytes = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255)
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        scaled = np.clip(np.asarray(image) * 255, 0, 255).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # without this step Pillow warns
    return image.convert("RGB")


def find_fault(path: Path) -> tuple[str, tuple[int, int]]:
    """(fault of an image file or "", its height and width), mostly without decoding it.

    PNG files are checked by their checksums. A JPEG file without an end marker, which may be
    truncated or followed by other bytes, is decoded, and so are other formats. Faults missed here,
    such as scrambled JPEG data, usually do not stop Pillow from decoding the image.
    """
    try:
        with Image.open(path) as image:
            size = (image.height, image.width)
            if image.format == "PNG":
                image.verify()
            elif image.format != "JPEG" or not _has_end_mark(path):
                image.load()
    except READ_ERRORS as error:
        return str(error) or type(error).__name__, (0, 0)
    return "", size


def _has_end_mark(path: Path) -> bool:
    """Whether a JPEG file ends in the EOI marker (ITU T.81, table B.1)."""
    with path.open("rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"
