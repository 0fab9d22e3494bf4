"""Nested lists, tuples and dictionaries of call arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["mapped", "tensors_in"]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """`value` with `function` applied to each leaf of its lists, tuples and dictionaries."""
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, function) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    return function(value) if not isinstance(value, bool) else value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in the value's lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
