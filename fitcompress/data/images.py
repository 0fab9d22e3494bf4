"""Collections of images at their native size, and how one image is read. Layer: Pillow, errors;
knows no network and no view.

Every source (folder, timm data set, built-in set) ends as an `Images`: labels that are known
without decoding, and pictures that are decoded one by one, upright, as 8-bit RGB.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

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
"""Pillow raises whatever its format plugins raise; these are the ones that damaged files cause."""


class DecodingError(DataError):
    """An image that turned out to be unreadable during training.

    An error in a worker process reaches the main one as its class called with the text of the
    whole traceback (torch 2.15, `ExceptionWrapper.reraise`), of which only the end is of interest.
    """

    def __init__(self, text: str) -> None:
        _, start, end = text.rpartition("decoding image ")
        advice = "remove or replace the image, then resume the run"
        super().__init__((start + end).strip(), advice=advice)


class Images(Protocol):
    """A labelled collection of pictures."""

    @property
    def labels(self) -> Indices:
        """Class of each image, -1 where there is none."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Median height and width, in pixels."""

    @property
    def num_bytes(self) -> int:
        """What the images take where they are kept (disk or memory), as far as known."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Image.Image:
        """One upright image in mode RGB, native size."""


@dataclass(frozen=True, eq=False)
class ArrayImages:
    """Images of one size in memory."""

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
        """Raises DecodingError when the file can no longer be decoded."""
        path = self.paths[index]
        try:
            return read_rgb(path)
        except READ_ERRORS as error:
            raise DecodingError(f"decoding image '{path}': {error}") from error


@dataclass(frozen=True, eq=False)
class Subset:
    """Some images of another collection, in the order of `indices`."""

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
    """The image of a file, turned upright by its EXIF orientation, in mode RGB.

    Transparency is dropped, as torchvision and timm do. 16-bit gray keeps its high byte and floats
    are taken as 0..1 (Pillow itself would clip both to white). Of an animation, the first frame is
    taken.
    """
    with Image.open(file) as image:
        image.load()
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The same picture upright and in mode RGB (see `read_rgb`)."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        high_bytes = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255)
        return Image.fromarray(high_bytes.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        scaled = np.clip(np.asarray(image) * 255, 0, 255).round()
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # straight to RGB is the same picture with a warning
    return image.convert("RGB")


def find_fault(path: Path) -> tuple[str, tuple[int, int]]:
    """(what is wrong with an image file or "", its height and width), mostly without decoding it.

    PNG files hold checksums, which are checked. A JPEG file must end in its end mark, or it is
    decoded to decide (it may be truncated, or followed by other bytes). Other formats are decoded.
    What this overlooks, such as a scrambled JPEG, Pillow usually decodes too.
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
