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

from fitcompress.errors import CaptureError
from fitcompress.graph.analysis.costs import count_macs
from fitcompress.graph.cut import cut_program
from fitcompress.graph.fold import Folded, fold_norms
from fitcompress.graph.lift import build_network, share_leaves
from fitcompress.graph.program import Program
from fitcompress.models.model import Model
from fitcompress.distillation.hooks import record_outputs
from fitcompress.training.device import AUTOCAST, to_channels_last

__all__ = ["FrozenTeacher", "StageCost", "confirm_part", "cut_at", "freeze_teacher", "stage_cost"]


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
    precision: str = "fp32",
    layout: str = "contiguous",
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


def cut_at(model: Model, nodes: Sequence[str], *, with_output: bool = False) -> nn.Module:
    """The network up to some nodes, made of the very modules of the whole; gives a tuple, in which
    the outputs come last if they are asked for.
    """
    program = cut_program(model.program, nodes, with_output=with_output)
    return _AsTuple(share_leaves(model.network, program))


class _AsTuple(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = self.network(*inputs)
        return (values,) if isinstance(values, torch.Tensor) else tuple(values)


class _InPrecision(_AsTuple):
    """A network without gradients under its own autocast, whose values come out in float32."""

    def __init__(self, network: nn.Module, precision: str) -> None:
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


@dataclass(frozen=True)
class StageCost:
    """Floating-point operations of one image forward through each part; two for a multiply-add.

    A step costs the teacher's once and the student's three times: backward it needs the gradients
    of the values and of the weights, each as much as forward.
    """

    teacher_flops: int
    student_flops: int

    @property
    def step_flops(self) -> int:
        """Of one image in a training step."""
        return self.teacher_flops + 3 * self.student_flops


def stage_cost(
    teacher: Model | None, student: Model, hints: Sequence[str] = (), guided: Sequence[str] = ()
) -> StageCost:
    """The cost of a stage that runs the teacher up to the hints and the student up to the guided
    layers, or all of them.
    """
    return StageCost(
        0 if teacher is None else _flops(teacher.program, hints), _flops(student.program, guided)
    )


def _flops(program: Program, nodes: Sequence[str]) -> int:
    part = cut_program(program, nodes, with_output=False) if nodes else program
    return 2 * count_macs(part)
