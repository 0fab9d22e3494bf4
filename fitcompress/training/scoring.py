"""Means of scores over batches and processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

from torch import Tensor

from fitcompress.training.distributed import ProcessGroup
from fitcompress.training.protocols import Scores

__all__ = ["add_scores", "mean_scores"]

Totals = dict[str, tuple[Tensor | float, Tensor | int]]


def add_scores(batches: Iterable[Scores]) -> Totals:
    """The sum of each score and of its samples over batches, without waiting for the device."""
    return _added(chain.from_iterable(scores.items() for scores in batches))


def mean_scores(totals: Scores, group: ProcessGroup) -> dict[str, float]:
    """The mean of each score over the samples of all ranks. Collective: every rank must call it."""
    own = {name: (float(total), int(count)) for name, (total, count) in totals.items()}
    gathered: Iterable[Mapping[str, tuple[float, int]]] = group.all_gather(own)
    sums = _added(chain.from_iterable(scores.items() for scores in gathered))
    return {name: float(total) / int(count) for name, (total, count) in sums.items() if count}


def _added(items: Iterable[tuple[str, tuple[Tensor | float, Tensor | int]]]) -> Totals:
    sums: Totals = {}
    for name, (total, count) in items:
        old_total, old_count = sums.get(name, (0.0, 0))
        sums[name] = (old_total + total, old_count + count)
    return sums
