"""Networks cut at hint and guided layers, and a check of the cut against forward hooks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from fitcompress.distillation.hooks import record_outputs
from fitcompress.errors import CaptureError
from fitcompress.graph.cut import cut_program
from fitcompress.graph.lift import share_leaves
from fitcompress.models.model import Model

__all__ = ["AsTuple", "cut_at", "verify_cut"]


def cut_at(model: Model, nodes: Sequence[str], *, with_output: bool = False) -> nn.Module:
    """The network up to some nodes; it shares its modules with the model's network.

    Returns a tuple of the values of the nodes, followed by the outputs with `with_output`.
    """
    program = cut_program(model.program, nodes, with_output=with_output)
    return AsTuple(share_leaves(model.network, program))


class AsTuple(nn.Module):
    """Returns the network's outputs as a tuple, even if there is one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.network(*inputs)
        return (values,) if isinstance(values, torch.Tensor) else tuple(values)


_TOLERANCE = 0.01
"""Share of a value's norm: folded batch norms change the order of sums, and GPUs round the factors
of convolutions to 10 bits (TF32)."""

_ROUNDING = 1e-6
"""Tolerance per element, for layers whose values are almost zero."""


def verify_cut(
    network: nn.Module, cut: nn.Module, names: Sequence[str], *inputs: torch.Tensor
) -> list[str]:
    """Compares the values of a cut with those that hooks on the named layers see in the whole
    network. Nothing is modified.

    Returns:
        The names that were compared; a block that is not a module has no hook.

    Raises:
        CaptureError: the values differ, or are NaN.
    """
    seen = record_outputs(network, *inputs, names=names)
    with torch.no_grad():
        values = dict(zip(names, cut(*inputs), strict=True))
    for name, hooked in seen.items():
        difference, size = float((values[name] - hooked).norm()), float(hooked.norm())
        if not difference <= _TOLERANCE * size + _ROUNDING * hooked.numel() ** 0.5:
            raise CaptureError(
                f"cutting the network at '{name}': its values differ from those of the whole"
                f" network by {difference:.3g} (norm {size:.3g})",
                code="cut-values-differ",
                advice="Choose another layer with --hint and --guided.",
                layer=name,
                difference=difference,
                norm=size,
            )
    return list(seen)
