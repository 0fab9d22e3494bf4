"""Keeps the values of a recorded run alive for as long as the run can still reach them.

The recorder identifies a value by its tensor's id and by its place in memory, neither of which may
be reused during the run. Keeping every value would need memory for all feature maps of a network at
once. So values that nothing else refers to are released, and only the addresses of their storages
stay reserved. Counts references with private parts of torch (2.11 to 2.15).
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

_SWEEP_BYTES = 2**28
"""Unreachable values are released each time this many bytes of new values have been added."""


class KeptValues:
    """Holds values until nothing else refers to them, and the addresses of their storages forever.

    Args:
        own: the storages of the network's tensors, which are always kept.
        forget: called with each value before it is released, after which its id may be reused.
    """

    def __init__(self, own: Collection[int], forget: Callable[[Tensor], None]) -> None:
        self._own, self._forget = own, forget
        self._groups: defaultdict[int, list[Tensor]] = defaultdict(list)
        """By storage: the values that may be released."""
        self._kept: list[Tensor] = []
        self._addresses: list[StorageWeakRef] = []
        self._num_bytes = 0

    def add(self, value: object) -> None:
        """Keeps a value; may release others."""
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
        if self._num_bytes > _SWEEP_BYTES:
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
    """Returns freed memory to the system if the C library is glibc, which does not reuse freed
    blocks while small new ones fragment the space around them.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _is_ours_alone(group: list[Tensor]) -> bool:
    """Whether only the list refers to these tensors, and only they to their storage."""
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
        # references: the group, the dictionary, the name `value`, the argument of getrefcount, and
        # one more for a tensor that C++ refers to as well
        num_known = (key in ours) + 3 + (num_owners > 1)
        if num_owners > 1 + num_views[key] or sys.getrefcount(value) > num_known:
            return False
    return True
