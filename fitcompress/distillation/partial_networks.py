"""Networks cut at hint and guided layers, and the proof that a cut returns what hooks see."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fitcompress.distillation.hooks import record_outputs
from fitcompress.errors import CaptureError
from fitcompress.graph.cut import cut_program
from fitcompress.graph.lift import share_leaves
from fitcompress.models.model import Model

__all__ = ["confirm_part", "cut_at"]


def cut_at(model: Model, nodes: Sequence[str], *, with_output: bool = False) -> nn.Module:
    """The network up to some nodes, made of the very modules of the whole; gives a tuple, in which
    the outputs come last if they are asked for.
    """
    program = cut_program(model.program, nodes, with_output=with_output)
    return AsTuple(share_leaves(model.network, program))


class AsTuple(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.network(*inputs)
        return (values,) if isinstance(values, torch.Tensor) else tuple(values)


_TOLERANCE = 0.01
"""Of a value's norm: a folded batch norm takes its sums in another order, and GPUs round factors of
convolutions to 10 bits (TF32)."""


_ROUNDING = 1e-6
"""Of an element, for layers that give next to nothing."""


def confirm_part(
    network: nn.Module, part: nn.Module, names: Sequence[str], *inputs: torch.Tensor
) -> list[str]:
    """Runs the whole network with hooks on the named layers, and the part that was cut at them:
    they must say the same. The names that were seen: a block without a module of its own has no
    hook.

    Nothing is modified.

    Raises:
        CaptureError: they do not, or give no numbers.
    """
    seen = record_outputs(network, *inputs, names=names)
    with torch.no_grad():
        values = dict(zip(names, part(*inputs), strict=True))
    for name, hooked in seen.items():
        difference, size = float((values[name] - hooked).norm()), float(hooked.norm())
        if not difference <= _TOLERANCE * size + _ROUNDING * hooked.numel() ** 0.5:
            raise CaptureError(
                f"cutting the network at '{name}': the part gives other values than the whole (off"
                f" by {difference:.3g} where they are {size:.3g} large)",
                advice="Name another layer (--hint, --guided).",
            )
    return list(seen)
