"""Keys that tell whether two tensors are the same, or share memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch._subclasses import FakeTensor

__all__ = ["identity_key", "place_key", "storage_key"]


def storage_key(value: Tensor) -> int:
    """Equal for tensors that share a storage, such as views of one another."""
    return int(value.untyped_storage()._cdata)


def place_key(value: Tensor) -> Any:
    """Equal for tensors that consist of the same elements of a storage in the same layout."""
    layout = (value.storage_offset(), tuple(value.shape), value.stride())
    return storage_key(value), value.dtype, layout


def identity_key(value: Tensor) -> Any:
    """Equal for tensors with the same address and layout; the object itself counts for tensors
    without memory.
    """
    if value.is_meta or isinstance(value, FakeTensor) or value.numel() == 0:
        return id(value)
    return value.data_ptr(), tuple(value.shape), value.stride(), value.dtype
