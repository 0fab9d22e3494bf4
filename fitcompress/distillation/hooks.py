"""Forward hooks: the outputs of a network's layers.

The only file that registers forward hooks on single modules; `graph.capture.recorder` hooks the
calls of all modules.
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
    """The outputs of a network's layers by name, in the order in which the layers finish.

    Runs the network once in eval mode under `no_grad`. Nothing is modified: hooks are removed and
    training flags restored. For a layer that is called several times the first output counts;
    layers that do not return a single tensor are omitted.

    names: the layers to record; None records all. Unknown names are ignored.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and (names is None or name in names):
            outputs.setdefault(name, output)

    with _hooked(network, record), evaluating(network), torch.no_grad():
        network(*inputs)
    return outputs


@contextmanager
def _hooked(network: nn.Module, record: Callable[[str, Any], None]) -> Iterator[None]:
    handles = []
    try:
        for name, module in network.named_modules():
            if name:
                handles.append(
                    module.register_forward_hook(
                        lambda _module, _inputs, output, name=name: record(name, output)
                    )
                )
        yield
    finally:
        for handle in handles:
            handle.remove()
