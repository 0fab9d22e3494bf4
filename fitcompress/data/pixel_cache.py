"""Pixel cache: decoded views in memory that loader processes share."""

from __future__ import annotations

import mmap
from collections.abc import Callable

import numpy as np

from fitcompress.data.image_ops import Pixels

__all__ = ["PixelCache"]


class PixelCache:
    """Arrays that are computed once, by the first process that needs them.

    The memory is anonymous and shared, so forked loader workers fill it for one another and for
    later epochs (torch's shared tensors use files in /dev/shm, which many containers limit to
    64 MB). Two processes that fill the same entry write the same bytes. A pickled copy (for spawned
    workers) starts empty.
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

    @property
    def num_known(self) -> int:
        """Number of arrays computed so far."""
        return int(self._is_known.sum())

    @property
    def values(self) -> Pixels:
        """All arrays; those not computed yet are zeros."""
        return self._values

    def __reduce__(self) -> tuple[type[PixelCache], tuple[tuple[int, ...]]]:
        return PixelCache, (self._shape,)


def _shared_bytes(num: int) -> Pixels:
    """Zeros in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(1, num)), dtype=np.uint8, count=num)
