"""Views: the uint8 images of a network's size that training and evaluation see.

Plain views (resized, center-cropped) are cached if they fit in memory. Augmentation is a pure
function of (seed, sample id, epoch): "flip", "shift" and "crop" move plain views by whole pixels,
a batch at a time; "strong" applies torchvision's random transforms to the native image, under a
generator seeded by those three.

Legend: N batch, C channels, H W space.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fitcompress.data.image_ops import Pixels, mixup, plain_view, shift_and_flip, strong_view
from fitcompress.data.images import Images
from fitcompress.data.pixel_cache import PixelCache
from fitcompress.data.rng import Stream, random_bits, to_beta, to_uniform
from fitcompress.data.sampling import Indices
from fitcompress.errors import RecipeError
from fitcompress.interface import InputSpec
from fitcompress.recipe.fields import check_at_least, check_one_of
from fitcompress.recipe.schema import PADDING, Augmentation

__all__ = ["Batch", "Views", "make_dataset"]

_SMALL_SIDE = 64
"""Native pixels up to which "auto" means "crop": objects in larger images vary in scale."""
_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Batch:
    """A batch of views. With mixup, `images` are already mixed."""

    images: Tensor
    """uint8 NCHW."""
    labels: Tensor
    """int64 N, -1 for unlabeled images."""
    ids: Tensor
    """int64 N: index of each sample in its data set."""
    mix_labels: Tensor | None = None
    """int64 N: labels of the mixup partners; None without mixup."""
    mix_lam: Tensor | None = None
    """float32 N: weight of `labels`; `mix_labels` have weight 1 - `mix_lam`."""
    teacher_outputs: tuple[Tensor, ...] = ()
    """The teacher's outputs for these views, if they are cached."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; called by torch's DataLoader."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            function(self.images),
            function(self.labels),
            function(self.ids),
            None if self.mix_labels is None else function(self.mix_labels),
            None if self.mix_lam is None else function(self.mix_lam),
            tuple(map(function, self.teacher_outputs)),
        )


class Views(Dataset[tuple[Tensor, int, int]]):
    """Views of a collection of images, for one epoch at a time. Made by `make_dataset`."""

    def __init__(
        self,
        images: Images,
        spec: InputSpec,
        *,
        augment: Augmentation,
        seed: int,
        mixup: float,
        cache_bytes: int,
        num_views: int | None = None,
        teacher_outputs: Callable[[Sequence[int], int], tuple[Tensor, ...]] | None = None,
        padding: float = PADDING,
    ) -> None:
        self.images = images
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.mixup = mixup
        self.num_views = 1 if augment == "none" and not mixup else num_views
        """Number of different views of a sample; None: new views in every epoch."""
        self.padding = padding
        self.teacher_outputs = teacher_outputs
        """Cached teacher outputs, by ids and view."""
        self.epoch = 0
        self.labels = np.asarray(images.labels, dtype=np.int64)
        num_bytes = len(images) * int(np.prod(spec.shape))
        is_cached = augment != "strong" and num_bytes <= cache_bytes
        self._cache = PixelCache((len(images), *spec.shape)) if is_cached else None
        self._on_device: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next items and batches; views repeat after `num_views` epochs."""
        self.epoch = epoch % self.num_views if self.num_views else epoch

    def move_to(self, device: torch.device) -> None:
        """Moves the cached plain views to the device, once half of them are computed. From then on
        batches are made there, bit for bit the same, and need no workers.
        """
        if self._on_device is not None or self._cache is None:
            return
        if 2 * self._cache.num_known < len(self):
            return
        for index in range(len(self)):
            self._plain(index)
        self._on_device = torch.from_numpy(self._cache.values).to(device)

    @property
    def is_on_device(self) -> bool:
        """Whether batches are made on the device."""
        return self._on_device is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """(uint8 CHW view, label or -1, id), without mixup, which needs a batch."""
        return self._views([index])[0], int(self.labels[index]), index

    def batch(self, ids: Sequence[int]) -> Batch:
        """The views of some samples; a view does not depend on the other samples of its batch."""
        images, labels = self._views(ids), torch.from_numpy(self.labels[list(ids)])
        ids_N = torch.tensor(list(ids), dtype=torch.int64)
        outputs = self.teacher_outputs(ids, self.epoch) if self.teacher_outputs else ()
        if not self.mixup:
            return Batch(images, labels, ids_N, teacher_outputs=outputs)
        partners, lam = self._partners(ids)
        mixed = mixup(images, self._views(partners.tolist()), lam)
        mix_labels = torch.from_numpy(self.labels[partners])
        return Batch(mixed, labels, ids_N, mix_labels, lam, outputs)

    def _views(self, ids: Sequence[int]) -> Tensor:
        """uint8 NCHW."""
        if self.augment == "strong":
            seeds = random_bits(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=1)[:, 0]
            pairs = zip(ids, seeds, strict=True)
            views = [strong_view(self.images.load(i), self.spec, int(seed)) for i, seed in pairs]
            return torch.from_numpy(np.stack(views))
        plain = self._plain_views(ids)
        if self.augment == "none":
            return plain
        bits = random_bits(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=3)
        padding = self.padding if self.augment in ("crop", "shift") else 0.0
        flips = self.augment != "shift"
        return shift_and_flip(plain, to_uniform(bits), padding=padding, flips=flips)

    def _plain_views(self, ids: Sequence[int]) -> Tensor:
        if self._on_device is None:
            return torch.from_numpy(np.stack([self._plain(i) for i in ids]))
        return self._on_device[torch.tensor(list(ids), device=self._on_device.device)]

    def _plain(self, index: int) -> Pixels:
        if self._cache is None:
            return plain_view(self.images.load(index), self.spec)
        return self._cache.get(index, lambda: plain_view(self.images.load(index), self.spec))

    def _partners(self, ids: Sequence[int]) -> tuple[Indices, Tensor]:
        """(mixup partner, own weight) of each sample (mixup, Zhang et al. 2018, section 2)."""
        bits = random_bits(self.seed, Stream.MIX, ids, epoch=self.epoch, num=2)
        partners = (to_uniform(bits[:, 0]) * len(self)).astype(np.int64)
        return partners, torch.from_numpy(to_beta(bits[:, 1], self.mixup).astype(np.float32))


def make_dataset(
    source: Images,
    spec: InputSpec,
    *,
    augment: Augmentation,
    seed: int,
    mixup: float = 0.0,
    cache_bytes: int = _CACHE_BYTES,
    num_views: int | None = None,
    padding: float = PADDING,
) -> Views:
    """The views of a collection of images for a network.

    Args:
        source: such as `DataBundle.train`. A sample's id is its index in it.
        spec: size, channels (1 or 3), interpolation and center crop; `Preprocess` applies mean and
            std.
        augment: see `DataRecipe.augment`.
        seed: of augmentation and mixup.
        mixup: alpha of Beta(alpha, alpha); 0 turns mixup off.
        cache_bytes: plain views are cached if all of them fit in this much memory.
        num_views: views per sample, repeated in turns; None: new views in every epoch. Without
            augmentation and mixup there is one.
        padding: maximum shift of "shift" and "crop", as a fraction of the image's sides.

    Raises:
        RecipeError: an unknown `augment`, a negative `mixup`, or neither 1 nor 3 channels.
    """
    check_one_of(typing.get_args(Augmentation), "data.augment", augment)
    check_at_least(0, "data.mixup", mixup)
    if spec.shape[0] not in (1, 3):
        raise RecipeError(
            f"augmenting images: expected 1 or 3 channels, got {spec.shape[0]}",
            code="channels-unsupported",
            advice="Correct the input size, for example --input-size 3,224,224.",
            got=spec.shape[0],
        )
    if augment == "auto":
        augment = "crop" if max(source.image_size) <= _SMALL_SIDE else "strong"
    return Views(
        source,
        spec,
        augment=augment,
        seed=seed,
        mixup=mixup,
        cache_bytes=cache_bytes,
        num_views=num_views,
        padding=padding,
    )
