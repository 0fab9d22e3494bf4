"""Eval mode for a block of code. The one module at the root that imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["evaluating", "preserved_modes"]


@contextmanager
def evaluating(*networks: Any) -> Iterator[None]:
    """Eval mode inside the block; afterwards every module is in the mode it was in.

    Callables that are not modules are left alone.
    """
    modules = [module for net in networks if isinstance(net, nn.Module) for module in net.modules()]
    with preserved_modes(modules) as flags:
        for module, _ in flags:
            module.training = False
        yield


@contextmanager
def preserved_modes(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, bool]]]:
    """Gives each module its training flag back after the block. Yields the modules that have one (a
    frozen archive has none) with their flags.
    """
    flags = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        yield flags
    finally:
        for module, flag in flags:
            module.training = flag
