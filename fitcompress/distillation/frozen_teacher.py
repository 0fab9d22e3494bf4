"""What each stage runs of the two networks, and what that costs. Layer: pipeline.

The teacher is only run: it is cut behind the last value that is asked of it, its batch norms are
folded away, and nothing of it takes gradients. The student's part is made of the student's own
modules, so training it trains the student.
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
    """A teacher that is only run."""

    network: nn.Module
    """From its input to a tuple of what is asked of it; in eval mode, without gradients."""
    program: Program
    """What it computes, before its batch norms were folded."""
    folded: Folded


def freeze_teacher(
    model: Model,
    nodes: Sequence[str] = (),
    *,
    with_output: bool = False,
    precision: Precision = "fp32",
    layout: Layout = "contiguous",
) -> FrozenTeacher:
    """The teacher up to some nodes, all of it without them or when its outputs are asked for too,
    which then come last. The model is left as it is.

    The values are the model's up to rounding: sums are taken in another order, and in `precision`
    ("fp32", "bf16" or "fp16"; norms and the like stay in float32), whatever autocast is around.
    layout: "contiguous" or "channels-last", of convolutions' weights and so of the maps.
    """
    program = model.program
    if nodes:
        program = cut_program(program, nodes, with_output=with_output)
    folded = fold_norms(program)
    network = build_network(folded.program).eval().requires_grad_(False)
    if layout == "channels-last":
        to_channels_last(network)
    return FrozenTeacher(_InPrecision(network, precision).eval(), program, folded)


class _InPrecision(AsTuple):
    """A network without gradients under its own autocast, whose values come out in float32."""

    def __init__(self, network: nn.Module, precision: Precision) -> None:
        super().__init__(network)
        self.dtype = AUTOCAST[precision]
        if self.dtype:  # autocast would convert frozen weights anew in every call
            for part in network.modules():
                if isinstance(part, _CONVERTED):
                    part.to(self.dtype)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(inputs[0].device.type, self.dtype, enabled=self.dtype is not None):
            values = super().forward(*inputs)
        return tuple(value.float() if value.is_floating_point() else value for value in values)


_CONVERTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)
"""What autocast runs in the lower precision."""
