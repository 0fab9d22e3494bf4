"""From images to uint8 pixels of a network's size, and what augmentation does to them. Layer:
torchvision, spec.

All pure: what is random is decided by numbers that come as arguments. Legend: N batch, C channels,
H W space.
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

__all__ = ["Pixels", "mix", "move", "plain_view", "strong_view"]

_STRONG_SCALE = (0.25, 1.0)
"""Share of the area. timm's 0.08 is for hundreds of epochs; distillation here runs for tens."""
_STRONG_JITTER = 0.2
"""Half of timm's default, for the same reason."""

Pixels = npt.NDArray[np.uint8]


def plain_view(image: Image.Image, spec: InputSpec) -> Pixels:
    """The view for evaluation, uint8 CHW.

    The image is scaled to cover the network's size over `crop_pct`, then cropped in the centre.

    The same pixels as timm's evaluation transform for square sizes, but an image that has the
    network's size already is taken as it is: cutting the border off a 32 pixel image for a 32 pixel
    network would only blur it.
    """
    _, height, width = spec.shape
    image = _in_mode_of(image, spec)
    if image.size != (width, height):
        covering = _covering_size(image.size, (height, width), spec.crop_pct)
        image = F.resize(image, covering, interpolation=_interpolation(spec))
        image = F.center_crop(image, [height, width])
    return _pixels(image)


def strong_view(image: Image.Image, spec: InputSpec, word: int) -> Pixels:
    """A random resized crop, flip and colour jitter of torchvision's, uint8 CHW, decided by `word`.

    torch's global generator, which torchvision draws from, is left as it was.
    """
    image = _in_mode_of(image, spec)
    jitter = v2.ColorJitter(_STRONG_JITTER, _STRONG_JITTER, _STRONG_JITTER)
    size = list(spec.shape[1:])
    crop = v2.RandomResizedCrop(size, scale=_STRONG_SCALE, interpolation=_interpolation(spec))
    with _torch_seeded(word):
        return _pixels(v2.Compose([crop, v2.RandomHorizontalFlip(), jitter])(image))


def move(
    plain: Tensor, uniforms: npt.NDArray[np.float64], *, padding: float, flips: bool
) -> Tensor:
    """Each image of NCHW shifted by up to `padding` of its sides and, if it `flips`, half of them
    mirrored; on the images' device.

    The same as a random crop of the image padded by reflection, then a horizontal flip. `uniforms`,
    shape (N, 3), decide the vertical and horizontal shift and the flip.
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


def mix(images: Tensor, partners: Tensor, lam: Tensor) -> Tensor:
    """lam x image + (1 - lam) x partner, rounded: uint8. `lam`: float32, one for each image."""
    weight = lam.to(images.device)[:, None, None, None]
    return torch.round(images * weight + partners * (1 - weight)).to(torch.uint8)


def _covering_size(native: tuple[int, int], target: tuple[int, int], crop_pct: float) -> list[int]:
    """[height, width] to scale to: the tight side is the target's over `crop_pct`.

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
        message = f"interpolation of the input: expected one of {known}, got '{spec.interpolation}'"
        raise RecipeError(message) from None


def _in_mode_of(image: Image.Image, spec: InputSpec) -> Image.Image:
    return image if spec.shape[0] == 3 else image.convert("L")


def _pixels(image: Image.Image) -> Pixels:
    """uint8 CHW of an image in mode L or RGB."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextlib.contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    """torch's CPU generator, which torchvision draws from: seeded inside, outside as it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed % 2**63)
    try:
        yield
    finally:
        generator.set_state(state)


def _shifted(side: int, uniforms: npt.NDArray[np.float64], padding: float) -> Indices:
    """For each number the places 0..side-1, shifted and reflected at the borders: (N, side)."""
    reach = int(side * padding + 0.5)
    shifts = (uniforms * (2 * reach + 1)).astype(np.int64) - reach
    places = np.abs(np.arange(side) + shifts[:, None])
    reflected: Indices = np.where(places < side, places, 2 * (side - 1) - places)
    return reflected
