"""Data loaders: batches in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fitcompress.data.rng import Stream, permutation
from fitcompress.data.views import Batch, Views

__all__ = ["BatchOrder", "in_groups", "make_loader"]


class BatchOrder:
    """The sample ids of each batch of one process in an epoch: a batch sampler that Accelerate
    accepts.
    """

    def __init__(
        self,
        order: Sequence[int],
        batch_size: int,
        *,
        start_batch: int = 0,
        drop_last: int = 0,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        assert batch_size > 0 and start_batch >= 0, (batch_size, start_batch)
        self.batch_size = batch_size
        self.drop_last = bool(drop_last)
        whole = drop_last * batch_size
        end = len(order) - len(order) % whole if whole else len(order)
        index, num = share
        starts = range((start_batch + index) * batch_size, end, num * batch_size)
        self._batches = [list(order[start : start + batch_size]) for start in starts]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def make_loader(
    dataset: Views,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    num_workers: int = 0,
    start_batch: int = 0,
    drop_last: int = 0,
    share: tuple[int, int] = (0, 1),
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A loader of the batches of one epoch.

    `epoch` decides the order; the views are those of the epoch set with `dataset.set_epoch`.

    Args:
        dataset: from `make_dataset`.
        batch_size: images per batch; the last may have fewer unless `drop_last`.
        shuffle_seed: None keeps the order of the data set.
        epoch: decides the order, together with the seed.
        num_workers: processes that prepare batches; they affect only the speed. None are started if
            the views are already on a device.
        start_batch: batches to skip without decoding them; the others are not affected.
        drop_last: drop the batches at the end that do not fill a multiple of this number; 0 drops
            none.
        share: (index, number) of the process, which takes every `number`-th batch from `index` on.
        pin_memory: whether batches are made in page-locked memory, for copies to a GPU.
    """
    order: list[int] = list(range(len(dataset)))
    if shuffle_seed is not None:
        order = permutation(len(dataset), shuffle_seed, Stream.ORDER, epoch=epoch).tolist()
    batches = BatchOrder(
        order, batch_size, start_batch=start_batch, drop_last=drop_last, share=share
    )
    return DataLoader(
        _ByBatch(dataset),
        batch_sampler=batches,
        num_workers=0 if dataset.is_on_device else num_workers,
        collate_fn=_unchanged,
        pin_memory=pin_memory and not dataset.is_on_device,
        # Otherwise each iterator draws the seed of its workers from torch's global generator,
        # which dropout uses too.
        generator=torch.Generator(),
    )


class _ByBatch(Dataset[Batch]):
    """Whole batches for torch's DataLoader, which prefers `__getitems__` over `__getitem__`."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, ids: list[int]) -> Batch:
        return self.views.batch(ids)


def _unchanged(batch: Any) -> Any:
    return batch


def in_groups(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Lists of `count` consecutive batches, the last may be shorter (itertools.batched needs Python
    3.12).
    """
    batches = iter(batches)
    while group := list(islice(batches, count)):
        yield group
