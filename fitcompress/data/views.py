"""What a network sees of an image: a uint8 view of its size. Layer: images, pixels, draws; knows
no loader and no training.

The plain view (resized, cropped in the centre) is kept for sets that fit in memory, where training
runs. Augmentation
is a pure function of (seed, sample id, epoch): "flip", "shift" and "crop" move plain views by whole
pixels, whole batches at once; "strong" uses torchvision's random transforms on the native image,
under a generator seeded by those three.

Legend: N batch, C channels, H W space.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fitcompress.data.images import Images
from fitcompress.data.pixel_cache import PixelCache
from fitcompress.data.rng import Stream, draw_words, to_beta, to_uniform
from fitcompress.data.sampling import Indices
from fitcompress.data.transforms import Pixels, mix, move, plain_view, strong_view
from fitcompress.errors import RecipeError
from fitcompress.interface import InputSpec

__all__ = ["AUGMENTATIONS", "Batch", "Views", "make_dataset"]

AUGMENTATIONS = ("auto", "none", "flip", "shift", "crop", "strong")
_SMALL_SIDE = 64
"""Native pixels up to which "auto" means "crop": in larger images objects come at many scales."""
_PADDING = 1 / 8
"""Of the side: 4 pixels for 32 (He et al., "Deep residual learning", section 4.2)."""
_CACHE_BYTES = 2**30


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
    teacher_outputs: tuple[Tensor, ...] = ()
    """What the teacher says about these views, where that is known already."""

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch elsewhere."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; called by torch's DataLoader."""
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
        num_views: int | None = None,
        teacher_outputs: Callable[[Sequence[int], int], tuple[Tensor, ...]] | None = None,
        padding: float = _PADDING,
    ) -> None:
        self.images = images
        self.spec = spec
        self.augment = augment
        self.seed = seed
        self.mixup = mixup
        self.num_views = 1 if augment == "none" and not mixup else num_views
        """Different views of a sample; None: each epoch has its own."""
        self.padding = padding
        self.teacher_outputs = teacher_outputs
        """The teacher's, by ids and view."""
        self.epoch = 0
        self.labels = np.asarray(images.labels, dtype=np.int64)
        num_bytes = len(images) * int(np.prod(spec.shape))
        is_cached = augment != "strong" and num_bytes <= cache_bytes
        self._cache = PixelCache((len(images), *spec.shape)) if is_cached else None
        self._settled: Tensor | None = None

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose views the next items and batches show; after `num_views` epochs
        they come again.
        """
        self.epoch = epoch % self.num_views if self.num_views else epoch

    def settle(self, device: torch.device) -> None:
        """Puts the plain views of a set that is kept in memory on the device, once half of them are
        known: batches are made there from then on, of the same bits, and need no workers.
        """
        if self._settled is not None or self._cache is None:
            return
        if 2 * self._cache.num_known < len(self):
            return
        for index in range(len(self)):
            self._plain(index)
        self._settled = torch.from_numpy(self._cache.values).to(device)

    @property
    def is_settled(self) -> bool:
        """Whether batches are made on the device."""
        return self._settled is not None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        """(uint8 CHW view, label or -1, id). Mixup is a matter of batches."""
        return self._views([index])[0], int(self.labels[index]), index

    def batch(self, ids: Sequence[int]) -> Batch:
        """The views of some samples. Each is the same in whatever batch it comes."""
        images, labels = self._views(ids), torch.from_numpy(self.labels[list(ids)])
        ids_N = torch.tensor(list(ids), dtype=torch.int64)
        outputs = self.teacher_outputs(ids, self.epoch) if self.teacher_outputs else ()
        if not self.mixup:
            return Batch(images, labels, ids_N, teacher_outputs=outputs)
        partners, lam = self._partners(ids)
        mixed = mix(images, self._views(partners.tolist()), lam)
        mix_labels = torch.from_numpy(self.labels[partners])
        return Batch(mixed, labels, ids_N, mix_labels, lam, outputs)

    def _views(self, ids: Sequence[int]) -> Tensor:
        """uint8 NCHW."""
        if self.augment == "strong":
            words = draw_words(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=1)[:, 0]
            pairs = zip(ids, words, strict=True)
            views = [strong_view(self.images.load(i), self.spec, int(w)) for i, w in pairs]
            return torch.from_numpy(np.stack(views))
        plain = self._plain_views(ids)
        if self.augment == "none":
            return plain
        words = draw_words(self.seed, Stream.VIEW, ids, epoch=self.epoch, num=3)
        reach = self.padding if self.augment in ("crop", "shift") else 0.0
        flips = self.augment != "shift"
        return move(plain, to_uniform(words), padding=reach, flips=flips)

    def _plain_views(self, ids: Sequence[int]) -> Tensor:
        if self._settled is None:
            return torch.from_numpy(np.stack([self._plain(i) for i in ids]))
        return self._settled[torch.tensor(list(ids), device=self._settled.device)]

    def _plain(self, index: int) -> Pixels:
        if self._cache is None:
            return plain_view(self.images.load(index), self.spec)
        return self._cache.get(index, lambda: plain_view(self.images.load(index), self.spec))

    def _partners(self, ids: Sequence[int]) -> tuple[Indices, Tensor]:
        """Each sample's mixup partner, and its own weight (mixup, Zhang et al. 2018, section 2)."""
        words = draw_words(self.seed, Stream.MIX, ids, epoch=self.epoch, num=2)
        partners = (to_uniform(words[:, 0]) * len(self)).astype(np.int64)
        return partners, torch.from_numpy(to_beta(words[:, 1], self.mixup).astype(np.float32))


def make_dataset(
    source: Images,
    spec: InputSpec,
    *,
    augment: str,
    seed: int,
    mixup: float = 0.0,
    cache_bytes: int = _CACHE_BYTES,
    num_views: int | None = None,
    padding: float = _PADDING,
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
        num_views: views of each sample, which come in turns; None is a new one in each epoch.
            Without augmentation and mixup there is one.
        padding: how far "shift" and "crop" move an image, as a share of its sides.

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
