"""The values of a run that is recorded. Layer: graph; counts references, with private parts of
torch (2.11 to 2.15).

A value is known by its tensor's id and by its place in memory, and neither must go to another one
while the run lasts. Holding all of them would take room for every map of a network at once. So what
nothing else can reach is let go, and of its storage only the address is held.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from contextlib import suppress

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

__all__ = ["KeptValues"]

_SWEPT = 2**28
"""Bytes of new values after which those that can go are looked for."""


class KeptValues:
    """Values as long as anything else can reach them, and the addresses of their storages for good.

    Args:
        own: storages that are kept: those of the network's tensors.
        forget: is told of each value that goes: its id may come again.
    """

    def __init__(self, own: Collection[int], forget: Callable[[Tensor], None]) -> None:
        self._own, self._forget = own, forget
        self._groups: defaultdict[int, list[Tensor]] = defaultdict(list)
        """By the storage that they share; those that may go."""
        self._kept: list[Tensor] = []
        self._addresses: list[StorageWeakRef] = []
        self._num_bytes = 0

    def add(self, value: object) -> None:
        """Keeps a value; others may go."""
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        if value.is_meta or isinstance(value, FakeTensor) or storage._cdata in self._own:
            self._kept.append(value)
            return
        group = self._groups[storage._cdata]
        if any(known is value for known in group):
            return
        self._num_bytes += 0 if group else storage.nbytes()
        group.append(value)
        if self._num_bytes > _SWEPT:
            self._num_bytes = 0
            self._sweep()

    def _sweep(self) -> None:
        for key in [key for key, group in self._groups.items() if _is_ours_alone(group)]:
            group = self._groups.pop(key)
            self._addresses.append(StorageWeakRef(group[0].untyped_storage()))
            for value in group:
                self._forget(value)
            del group, value
        trim_memory()


def trim_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc: it finds no use for a
    freed block of the same size as long as small new ones lie around it.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _is_ours_alone(group: list[Tensor]) -> bool:
    """Whether nothing but the list holds these tensors, nor anything but they their storage."""
    storage = group[0].untyped_storage()
    bases = [value._base for value in group]
    num_views = Counter(map(id, bases))
    members = {id(value): value for value in (*bases, *group) if value is not None}
    if torch._C._storage_Use_Count(storage._cdata) != len(members) + 1:  # and this very object
        return False
    del bases
    ours = set(map(id, group))
    for key in members:
        value = members[key]
        num_owners = value._use_count()  # type: ignore[attr-defined]
        # held by the list of the group, the dictionary, the name here, the call that counts, and by
        # what holds a tensor that C++ holds too
        num_known = (key in ours) + 3 + (num_owners > 1)
        if num_owners > 1 + num_views[key] or sys.getrefcount(value) > num_known:
            return False
    return True
