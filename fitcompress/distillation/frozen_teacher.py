"""The teacher as stages run it: cut after the last value that is needed, its batch norms folded,
without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fitcompress.distillation.partial_networks import AsTuple
from fitcompress.graph.cut import cut_program
from fitcompress.graph.fold import Folded, fold_norms
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program
from fitcompress.models.model import Model
from fitcompress.recipe.schema import Layout, Precision
from fitcompress.training.device import AUTOCAST, to_channels_last

__all__ = ["FrozenTeacher", "freeze_teacher"]


@dataclass(frozen=True)
class FrozenTeacher:
    """A teacher for inference."""

    network: nn.Module
    """From the teacher's inputs to a tuple of the requested values; in eval mode."""
    program: Program
    """The program of the network, before its batch norms were folded."""
    folded: Folded


def freeze_teacher(
    model: Model,
    nodes: Sequence[str] = (),
    *,
    with_output: bool = False,
    precision: Precision = "fp32",
    layout: Layout = "contiguous",
) -> FrozenTeacher:
    """The model frozen and cut at some nodes. The model is not modified.

    Its values equal the model's up to rounding, since folding and `precision` change the sums.

    Args:
        nodes: the nodes whose values are returned; without them, the outputs.
        with_output: return the outputs too, after the values of the nodes.
        precision: "fp32", "bf16" or "fp16", whatever autocast is active around the network;
            operations such as norms stay in float32.
        layout: memory format of the weights of convolutions, "contiguous" or "channels-last".
    """
    program = model.program
    if nodes:
        program = cut_program(program, nodes, with_output=with_output)
    folded = fold_norms(program)
    network = build_network(folded.program).eval().requires_grad_(False)
    if layout == "channels-last":
        to_channels_last(network)
    return FrozenTeacher(_AutocastNetwork(network, precision).eval(), program, folded)


class _AutocastNetwork(AsTuple):
    """Runs a frozen network under its own autocast and returns float32 values."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(network)
        self.dtype = AUTOCAST[precision]
        if self.dtype:  # autocast would convert frozen weights again in every call
            for part in network.modules():
                if isinstance(part, _AUTOCAST_LAYERS):
                    part.to(self.dtype)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(inputs[0].device.type, self.dtype, enabled=self.dtype is not None):
            values = super().forward(*inputs)
        return tuple(value.float() if value.is_floating_point() else value for value in values)


_AUTOCAST_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
"""Layers that autocast runs in the lower precision."""
