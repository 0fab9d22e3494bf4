"""Batches in an order that is a pure function of (seed, epoch). Layer: views, draws, DataLoader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from fitcompress.data.rng import Stream, draw_order
from fitcompress.data.views import Batch, Views

__all__ = ["BatchOrder", "in_groups", "make_loader"]


class BatchOrder:
    """The ids of each batch of an epoch that one process takes. Has what Accelerate expects of a
    batch sampler.
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
    """A loader of the `Batch`es of one epoch.

    The order is that of `epoch`; the views are those of the epoch that `dataset.set_epoch` chose.

    Args:
        dataset: from `make_dataset`.
        batch_size: images in a batch; the last may have fewer unless `drop_last`.
        shuffle_seed: None keeps the order of the data set.
        epoch: with the seed decides the order.
        num_workers: processes that prepare batches; they change nothing but the speed. There are
            none where the views are settled on a device.
        start_batch: so many batches are left out, undecoded: what follows is as if they had been
            read.
        drop_last: leave out what is not a whole number of so many batches; 0 leaves out nothing.
        share: (index, number) of the process that takes each `number`-th batch from `index` on.
        pin_memory: for copies to a GPU.
    """
    order: list[int] = list(range(len(dataset)))
    if shuffle_seed is not None:
        order = draw_order(len(dataset), shuffle_seed, Stream.ORDER, epoch=epoch).tolist()
    batches = BatchOrder(
        order, batch_size, start_batch=start_batch, drop_last=drop_last, share=share
    )
    return DataLoader(
        _ByBatch(dataset),
        batch_sampler=batches,
        num_workers=0 if dataset.is_settled else num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory and not dataset.is_settled,
        # Else each iterator draws a seed for its workers from torch's global generator, which
        # dropout draws from too.
        generator=torch.Generator(),
    )


class _ByBatch(Dataset[Batch]):
    """Hands whole batches to torch's DataLoader, which prefers this method where there is one."""

    def __init__(self, views: Views) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views)

    def __getitems__(self, ids: list[int]) -> Batch:
        return self.views.batch(ids)


def _as_it_is(batch: Any) -> Any:
    return batch


def in_groups(batches: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """So many batches at a time (itertools.batched is of Python 3.12)."""
    batches = iter(batches)
    while group := list(islice(batches, count)):
        yield group
