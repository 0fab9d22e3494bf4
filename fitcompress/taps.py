"""Forward hooks: what a network's layers really return. Layer: torch only.

The only file that registers hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

__all__ = ["LayerRecord", "record_layers"]


@dataclass(frozen=True)
class LayerRecord:
    """One module as it was seen running."""

    name: str
    kind: str
    """The module's class; "Block" for a group of layers on the spine."""
    shape: tuple[int, ...]
    """Of its output, without the batch."""


def record_layers(network: nn.Module, *inputs: Tensor) -> list[LayerRecord]:
    """The layers of a network in the order in which they finish, each once.

    Runs the network once in eval mode under `no_grad`. Nothing is modified: hooks and training
    flags are put back. Modules that return no single tensor are left out.
    """
    records: dict[str, LayerRecord] = {}

    def note(name: str, module: nn.Module, output: Any) -> None:
        if isinstance(output, Tensor) and name not in records:
            kind = "Block" if isinstance(module, GraphModule) else type(module).__name__
            records[name] = LayerRecord(name, kind, tuple(output.shape[1:]))

    with _hooked(network, note), _evaluating(network), torch.no_grad():
        network(*inputs)
    return list(records.values())


@contextmanager
def _hooked(network: nn.Module, note: Any) -> Iterator[None]:
    handles = []
    try:
        for name, module in network.named_modules():
            if name:
                handles.append(
                    module.register_forward_hook(
                        lambda module, _inputs, output, name=name: note(name, module, output)
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    before = {module: module.training for module in network.modules()}
    try:
        network.eval()
        yield
    finally:
        for module, training in before.items():
            module.training = training
