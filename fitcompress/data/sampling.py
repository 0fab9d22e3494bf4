"""Stratified samples and splits of labels, as pure functions of a seed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fitcompress.data.rng import Stream, permutation

__all__ = ["Indices", "hold_out", "stratified_sample"]

Indices = npt.NDArray[np.int64]


def stratified_sample(labels: Indices, num: int, *, seed: int, stream: Stream) -> Indices:
    """Ascending indices of `num` samples (or all, if there are fewer), stratified by class.

    Method of the largest remainders; ties are broken at random. Unlabeled samples (-1) count as one
    class.

    >>> stratified_sample(np.array([0, 0, 0, 0, 1, 1]), 3, seed=0, stream=Stream.LIMIT).size
    3
    """
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quotas = _share_out(min(num, len(labels)), counts, seed=seed, stream=stream)
    return _take(class_of, quotas, seed=seed, stream=stream)


def hold_out(
    labels: Indices, fraction: float, *, seed: int, stream: Stream
) -> tuple[Indices, Indices]:
    """(kept, held out): ascending indices; about `fraction` of the samples is held out, stratified.

    Each class keeps at least one sample. At least one sample is held out, unless no class has two.
    """
    _, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = max(1, round(fraction * len(labels)))
    quotas = np.minimum(_share_out(wanted, counts, seed=seed, stream=stream), counts - 1)
    if quotas.sum() == 0 and counts.max() > 1:
        quotas[np.argmax(counts)] = 1
    held = _take(class_of, quotas, seed=seed, stream=stream)
    return np.setdiff1d(np.arange(len(labels), dtype=np.int64), held), held


def _share_out(num: int, counts: Indices, *, seed: int, stream: Stream) -> Indices:
    """Samples per class that add up to `num` (method of the largest remainders)."""
    exact = num * counts  # in units of 1 / total, to stay among integers
    quotas, remainders = np.divmod(exact, counts.sum())
    tie_break = permutation(len(counts), seed, stream, epoch=1)
    neediest = np.lexsort((tie_break, -remainders))
    quotas[neediest[: num - quotas.sum()]] += 1
    return quotas


def _take(class_of: Indices, quotas: Indices, *, seed: int, stream: Stream) -> Indices:
    """The first `quotas[c]` samples of each class c in a random order."""
    order = permutation(len(class_of), seed, stream)
    by_class = order[np.argsort(class_of[order], kind="stable")]
    starts = np.searchsorted(class_of[by_class], np.arange(len(quotas)))
    taken = [by_class[start : start + quota] for start, quota in zip(starts, quotas, strict=True)]
    return np.sort(np.concatenate(taken)).astype(np.int64)
