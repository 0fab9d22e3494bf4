"""Image transforms: resizing and cropping to a network's size, and augmentation, all in uint8.

All functions are pure: random numbers come as arguments. Legend: N batch, C channels, H W space.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fitcompress.data.sampling import Indices
from fitcompress.errors import RecipeError
from fitcompress.interface import InputSpec

__all__ = ["Pixels", "mixup", "plain_view", "shift_and_flip", "strong_view"]

_STRONG_SCALE = (0.25, 1.0)
"""Fraction of the image's area. timm's minimum of 0.08 suits hundreds of epochs, not tens."""
_STRONG_JITTER = 0.2
"""Half of timm's default, for the same reason."""

Pixels = npt.NDArray[np.uint8]


def plain_view(image: Image.Image, spec: InputSpec) -> Pixels:
    """The evaluation view, uint8 CHW: resized to cover size / `crop_pct`, then center-cropped.

    The same pixels as timm's evaluation transform for square sizes, except that an image of the
    network's size is not changed: cropping and enlarging a 32 pixel image would only blur it.
    """
    _, height, width = spec.shape
    image = _in_mode_of(image, spec)
    if image.size != (width, height):
        covering = _covering_size(image.size, (height, width), spec.crop_pct)
        image = F.resize(image, covering, interpolation=_interpolation(spec))
        image = F.center_crop(image, [height, width])
    return _pixels(image)


def strong_view(image: Image.Image, spec: InputSpec, seed: int) -> Pixels:
    """torchvision's random resized crop, flip and color jitter, uint8 CHW, decided by `seed`.

    torch's global generator, which torchvision draws from, is restored afterwards.
    """
    image = _in_mode_of(image, spec)
    jitter = v2.ColorJitter(_STRONG_JITTER, _STRONG_JITTER, _STRONG_JITTER)
    size = list(spec.shape[1:])
    crop = v2.RandomResizedCrop(size, scale=_STRONG_SCALE, interpolation=_interpolation(spec))
    with _torch_seeded(seed):
        return _pixels(v2.Compose([crop, v2.RandomHorizontalFlip(), jitter])(image))


def shift_and_flip(
    plain: Tensor, uniforms: npt.NDArray[np.float64], *, padding: float, flips: bool
) -> Tensor:
    """A random crop of each image padded by reflection, then a random horizontal flip.

    Args:
        plain: images, NCHW; the result is on their device.
        uniforms: numbers in [0, 1), shape (N, 3), for the vertical shift, the horizontal shift and
            the flip.
        padding: maximum shift, as a fraction of the image's sides.
        flips: whether half of the images are flipped.
    """
    num, channels, height, width = plain.shape
    rows = _shifted(height, uniforms[:, 0], padding)
    columns = _shifted(width, uniforms[:, 1], padding)
    if flips:
        columns = np.where(uniforms[:, 2, None] < 0.5, columns[:, ::-1], columns)
    places = (np.arange(num)[:, None], np.arange(channels)[None], rows[:, None], columns[:, None])
    samples, planes, rows_N1H, columns_N1W = (
        torch.from_numpy(place).to(plain.device) for place in places
    )
    return plain[
        samples[..., None, None],
        planes[..., None, None],
        rows_N1H[..., None],
        columns_N1W[:, :, None],
    ]


def mixup(images: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """lam x image + (1 - lam) x partner, rounded to uint8; `lam`: float32, shape (N,)."""
    weight = lam.to(images.device)[:, None, None, None]
    return torch.round(images * weight + partners * (1 - weight)).to(torch.uint8)


def _covering_size(native: tuple[int, int], target: tuple[int, int], crop_pct: float) -> list[int]:
    """[height, width] to resize to, so that the image covers the target size / `crop_pct`.

    Args:
        native: Pillow's order, width and height.
        target: height and width.
    """
    width, height = native
    target_height, target_width = (int(side / crop_pct) for side in target)
    if width * target_height <= height * target_width:
        return [target_width * height // width, target_width]
    return [target_height, target_height * width // height]


def _interpolation(spec: InputSpec) -> v2.InterpolationMode:
    try:
        return v2.InterpolationMode(spec.interpolation)
    except ValueError:
        known = ", ".join(mode.value for mode in v2.InterpolationMode)
        raise RecipeError(
            f"resizing images: expected an interpolation among {known}, got '{spec.interpolation}'",
            code="interpolation-unknown",
            advice="Correct the interpolation in the teacher's configuration.",
            got=spec.interpolation,
        ) from None


def _in_mode_of(image: Image.Image, spec: InputSpec) -> Image.Image:
    return image if spec.shape[0] == 3 else image.convert("L")


def _pixels(image: Image.Image) -> Pixels:
    """uint8 CHW of an image in mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator, which torchvision draws from, and restores it afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        generator.set_state(state)


def _shifted(side: int, uniforms: npt.NDArray[np.float64], padding: float) -> Indices:
    """Source indices along one side, shifted and reflected at the borders, shape (N, side)."""
    reach = int(side * padding + 0.5)
    shifts = (uniforms * (2 * reach + 1)).astype(np.int64) - reach
    places = np.abs(np.arange(side) + shifts[:, None])
    reflected: Indices = np.where(places < side, places, 2 * (side - 1) - places)
    return reflected
