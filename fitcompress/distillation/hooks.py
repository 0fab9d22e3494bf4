"""Forward hooks: what a network's layers really return. Layer: torch only.

The only file that registers hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fitcompress.modes import evaluating

__all__ = ["record_outputs"]


def record_outputs(
    network: nn.Module, *inputs: Tensor, names: Collection[str] | None = None
) -> dict[str, Tensor]:
    """What the layers of a network return, by name, in the order in which they finish.

    Runs the network once in eval mode under `no_grad`. Nothing is modified: hooks and training
    flags are put back. Of a layer that is called several times it is what it gave first; layers
    that return no single tensor are left out.

    names: only these layers; those that no module bears are left out.
    """
    outputs: dict[str, Tensor] = {}

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and (names is None or name in names):
            outputs.setdefault(name, output)

    with _hooked(network, note), evaluating(network), torch.no_grad():
        network(*inputs)
    return outputs


@contextmanager
def _hooked(network: nn.Module, note: Callable[[str, Any], None]) -> Iterator[None]:
    handles = []
    try:
        for name, module in network.named_modules():
            if name:
                handles.append(
                    module.register_forward_hook(
                        lambda _module, _inputs, output, name=name: note(name, output)
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()
