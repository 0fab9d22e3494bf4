"""What a network sees of an image: a uint8 view of its size. Layer: images, draws, torchvision;
knows no loader and no training.

The plain view (resized, cropped in the centre) is cached for sets that fit in memory. Augmentation
is a pure function of (seed, sample id, epoch): "flip" and "crop" move plain views by whole pixels,
whole batches at once; "strong" uses torchvision's random transforms on the native image, under a
generator seeded by those three.

Legend: N batch, C channels, H W space.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from fitcompress.data.draws import Stream, draw_words, to_beta, to_uniform
from fitcompress.data.images import Images
from fitcompress.data.splits import Indices
from fitcompress.errors import RecipeError
from fitcompress.spec import InputSpec

__all__ = ["AUGMENTATIONS", "Batch", "Views", "make_dataset", "plain_view"]

AUGMENTATIONS = ("auto", "none", "flip", "crop", "strong")
_SMALL_SIDE = 64
"""Native pixels up to which "auto" means "crop": in larger images objects come at many scales."""
_CROP_PADDING = 1 / 8
"""Of the side: 4 pixels for 32 (He et al., "Deep residual learning", section 4.2)."""
_STRONG_SCALE = (0.25, 1.0)
"""Share of the area. timm's 0.08 is for hundreds of epochs; distillation here runs for tens."""
_STRONG_JITTER = 0.2
"""Half of timm's default, for the same reason."""
_CACHE_BYTES = 2**30

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """Views of some samples. Where mixup is on, `images` are already mixed."""

    images: Tensor
    """uint8 NCHW."""
    labels: Tensor
    """int64 N, -1 where there is none."""
    ids: Tensor
    """int64 N: the place of each sample in its data set."""
    mix_labels: Tensor | None = None
    """int64 N: labels of the mixup partners; None when mixup is off."""
    mix_lam: Tensor | None = None
    """float32 N: weight of `labels`; that of `mix_labels` is 1 minus it."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch elsewhere."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        fields = (self.images, self.labels, self.ids, self.mix_labels, self.mix_lam)
        return Batch(*(None if field is None else function(field) for field in fields))  # type: ignore[arg-type]


class Views(Dataset[tuple[Tensor, int, int]]):
    """Views of a collection for one epoch at a time. Made by `make_dataset`."""

    def __init__(
        self,
        images: Images,
        spec: InputSpec,
        *,
        augment: str,
        seed: int,
        mixup: float,
        cache_bytes: int,
    ) -> None:
        self.images = images
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.mixup = mixup
        self.epoch = 0
        self.labels = np.asarray(images.labels, dtype=np.int64)
        num_bytes = len(images) * int(np.prod(spec.shape))
        is_cached = augment != "strong" and num_bytes <= cache_bytes
        self._cache = _Cache((len(images), *spec.shape)) if is_cached else None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose views the next items and batches show."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """(uint8 CHW view, label or -1, id). Mixup is a matter of batches."""
        return torch.from_numpy(self._views([index])[0]), int(self.labels[index]), index

    def batch(self, ids: Sequence[int]) -> Batch:
        """The views of some samples. Each is the same in whatever batch it comes."""
        images, labels = self._views(ids), torch.from_numpy(self.labels[list(ids)])
        ids_N = torch.tensor(list(ids), dtype=torch.int64)
        if not self.mixup:
            return Batch(torch.from_numpy(images), labels, ids_N)
        partners, lam = self._partners(ids)
        mixed = _mix(images, self._views(partners.tolist()), lam)
        mix_labels = torch.from_numpy(self.labels[partners])
        return Batch(torch.from_numpy(mixed), labels, ids_N, mix_labels, torch.from_numpy(lam))

    def _views(self, ids: Sequence[int]) -> Pixels:
        """uint8 NCHW."""
        if self.augment == "strong":
            words = draw_words(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=1)[:, 0]
            views = [self._strong(i, int(word)) for i, word in zip(ids, words, strict=True)]
            return np.stack(views)
        plain = np.stack([self._plain(i) for i in ids])
        if self.augment == "none":
            return plain
        words = draw_words(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=3)
        return _move(plain, to_uniform(words), padding=_CROP_PADDING * (self.augment == "crop"))

    def _plain(self, index: int) -> Pixels:
        if self._cache is None:
            return plain_view(self.images.load(index), self.spec)
        return self._cache.get(index, lambda: plain_view(self.images.load(index), self.spec))

    def _strong(self, index: int, word: int) -> Pixels:
        image = _in_mode_of(self.images.load(index), self.spec)
        with _torch_seeded(word):
            return _pixels(_strong_transform(self.spec)(image))

    def _partners(self, ids: Sequence[int]) -> tuple[Indices, npt.NDArray[np.float32]]:
        """Each sample's mixup partner, and its own weight (mixup, Zhang et al. 2018, section 2)."""
        words = draw_words(self.seed, Stream.MIX, ids, epoch=self.epoch, num=2)
        partners = (to_uniform(words[:, 0]) * len(self)).astype(np.int64)
        return partners, to_beta(words[:, 1], self.mixup).astype(np.float32)


def make_dataset(
    source: Images,
    spec: InputSpec,
    *,
    augment: str,
    seed: int,
    mixup: float = 0.0,
    cache_bytes: int = _CACHE_BYTES,
) -> Views:
    """The views that a network takes of a collection.

    Args:
        source: such as `DataBundle.train`. A sample's id is its place in it.
        spec: gives the size, 1 or 3 channels, interpolation and centre crop; mean and std are
            `Preprocess`' matter.
        augment: one of AUGMENTATIONS. "auto" is "crop" for native images up to 64 pixels, else
            "strong".
        seed: of augmentation and mixup.
        mixup: alpha of Beta(alpha, alpha); 0 is off.
        cache_bytes: plain views are kept in memory when all of them fit in so much.

    Raises:
        RecipeError: an unknown `augment`, a negative `mixup`, or a network of neither 1 nor 3
            channels.
    """
    if augment not in AUGMENTATIONS:
        raise RecipeError(
            f"data.augment: expected one of {', '.join(AUGMENTATIONS)}, got '{augment}'"
        )
    if mixup < 0:
        raise RecipeError(f"data.mixup: expected 0 or a positive alpha, got {mixup}")
    if spec.shape[0] not in (1, 3):
        raise RecipeError(
            f"making views of images: expected a network of 1 or 3 channels, got {spec.shape[0]}",
            advice="correct the input size (--input-size C H W)",
        )
    if augment == "auto":
        augment = "crop" if max(source.image_size) <= _SMALL_SIDE else "strong"
    return Views(source, spec, augment=augment, seed=seed, mixup=mixup, cache_bytes=cache_bytes)


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


def _strong_transform(spec: InputSpec) -> v2.Compose:
    jitter = v2.ColorJitter(_STRONG_JITTER, _STRONG_JITTER, _STRONG_JITTER)
    size = list(spec.shape[1:])
    crop = v2.RandomResizedCrop(size, scale=_STRONG_SCALE, interpolation=_interpolation(spec))
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter])


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


def _move(plain: Pixels, uniforms: npt.NDArray[np.float64], *, padding: float) -> Pixels:
    """Each image of NCHW shifted by up to `padding` of its sides and, half of them, mirrored.

    The same as a random crop of the image padded by reflection, then a horizontal flip. `uniforms`,
    shape (N, 3), decide the vertical and horizontal shift and the flip.
    """
    num, channels, height, width = plain.shape
    rows = _shifted(height, uniforms[:, 0], padding)
    columns = _shifted(width, uniforms[:, 1], padding)
    columns = np.where(uniforms[:, 2, None] < 0.5, columns[:, ::-1], columns)
    return plain[
        np.arange(num)[:, None, None, None],
        np.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _shifted(side: int, uniforms: npt.NDArray[np.float64], padding: float) -> Indices:
    """For each number the places 0..side-1, shifted and reflected at the borders: (N, side)."""
    reach = int(side * padding + 0.5)
    shifts = (uniforms * (2 * reach + 1)).astype(np.int64) - reach
    places = np.abs(np.arange(side) + shifts[:, None])
    reflected: Indices = np.where(places < side, places, 2 * (side - 1) - places)
    return reflected


def _mix(images: Pixels, partners: Pixels, lam: npt.NDArray[np.float32]) -> Pixels:
    """lam x image + (1 - lam) x partner, rounded."""
    weight = lam[:, None, None, None]
    return np.rint(images * weight + partners * (1 - weight)).astype(np.uint8)


class _Cache:
    """Arrays that are computed once, by whichever process comes first.

    The memory is anonymous and shared, so forked loader workers fill it for one another and for
    later epochs (files in /dev/shm, which torch's shared tensors take, are limited to 64 MB in many
    containers). Two processes that meet at one place write the same bytes. A copy that travels by
    pickle (workers that are spawned) starts empty.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._values: Pixels = _shared_bytes(int(np.prod(shape))).reshape(shape)
        self._is_known = _shared_bytes(shape[0])

    def get(self, index: int, compute: Callable[[], Pixels]) -> Pixels:
        if not self._is_known[index]:
            self._values[index] = compute()
            self._is_known[index] = 1
        value: Pixels = self._values[index]
        return value

    def __reduce__(self) -> tuple[type[_Cache], tuple[tuple[int, ...]]]:
        return _Cache, (self._shape,)


def _shared_bytes(num: int) -> Pixels:
    """Zeros that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(1, num)), dtype=np.uint8, count=num)
