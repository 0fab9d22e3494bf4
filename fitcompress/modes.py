"""Context managers for eval mode. The only module at the root that imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["evaluating", "preserved_modes"]


@contextmanager
def evaluating(*networks: Any) -> Iterator[None]:
    """Puts networks in eval mode inside the block, then restores the mode of each module.

    Callables that are not modules are ignored.
    """
    modules = [module for net in networks if isinstance(net, nn.Module) for module in net.modules()]
    with preserved_modes(modules) as flags:
        for module, _ in flags:
            module.training = False
        yield


@contextmanager
def preserved_modes(modules: Iterable[nn.Module]) -> Iterator[list[tuple[nn.Module, bool]]]:
    """Restores the training flag of each module after the block.

    Yields each module that has a flag (a frozen archive has none), and the flag.
    """
    flags = [(module, module.training) for module in modules if hasattr(module, "training")]
    try:
        yield flags
    finally:
        for module, flag in flags:
            module.training = flag
