"""Running sums of losses on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fitcompress.errors import TrainingError

__all__ = ["ADVICE_DIVERGED", "LossMeter"]

ADVICE_DIVERGED = (
    "Start again with a lower --lr or with --precision fp32; the last good checkpoint was kept."
)


class LossMeter:
    """Sums named losses over the steps of an epoch, as tensors on the device, and records the first
    step whose loss is not finite.

    `means`, `check` and `state` wait for the device; `add` does not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # Apple's GPUs have no float64.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums: dict[str, Tensor] = {}
        self._num_steps = 0
        self._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)

    def add(self, losses: Mapping[str, Tensor | float], step: int) -> None:
        """Adds the losses of one step, numbered from 1 within the epoch."""
        for name, value in losses.items():
            addend = value.detach().to(self._dtype) if isinstance(value, Tensor) else value
            self._sums[name] = self._sums.get(name, self._zero()) + addend
        is_first_bad = (self._first_bad_step < 0) & ~torch.isfinite(self._sums["loss"])
        self._first_bad_step = torch.where(is_first_bad, step, self._first_bad_step)
        self._num_steps += 1

    def means(self) -> dict[str, float]:
        """The mean of each loss over the steps so far."""
        return {name: float(total) / self._num_steps for name, total in self._sums.items()}

    def check(self, stage: str, epoch: int) -> None:
        """Raises TrainingError, naming the step, if a loss was not finite."""
        if (step := int(self._first_bad_step)) >= 0:
            raise TrainingError(
                f"training {stage}: the loss of epoch {epoch}, step {step} is not finite"
                " (NaN or infinite)",
                code="loss-not-finite",
                advice=ADVICE_DIVERGED,
                stage=stage,
                epoch=epoch,
                step=step,
            )

    def state(self) -> dict[str, object]:
        """The state for `restore`, with tensors on the CPU."""
        return {"sums": {k: v.cpu() for k, v in self._sums.items()}, "num_steps": self._num_steps}

    def restore(self, state: Mapping[str, object]) -> None:
        """Loads a stored state."""
        sums, num_steps = state["sums"], state["num_steps"]
        assert isinstance(sums, dict) and isinstance(num_steps, int), state
        self._sums = {name: total.to(self._device, self._dtype) for name, total in sums.items()}
        self._num_steps = num_steps

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=self._dtype, device=self._device)
