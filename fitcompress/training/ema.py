"""An exponential moving average (EMA) of the trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from fitcompress.errors import TrainingError

__all__ = ["WeightAverage"]

_WARMUP_POWER = 0.75
"""Step n is averaged with a decay of at most 1 - n^-0.75: the first weights are forgotten."""


class WeightAverage:
    """The exponential moving average of a network's weights and buffers over the steps (Polyak and
    Juditsky, 1992), computed by timm.

    Args:
        trained: the trained network; only `applied` and `apply` modify it.
        decay: weight of the past at each step, such as 0.999; 0 disables averaging.

    Raises:
        TrainingError: the network is sharded, and cannot be copied.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        if decay and any(isinstance(part, FSDPModule) for part in trained.modules()):
            raise TrainingError(
                "averaging the weights: sharded networks cannot be averaged",
                code="average-of-shards",
                advice="Set optim.ema to 0, or drop --shard.",
            )
        self._trained = trained
        self._average = (
            ModelEmaV3(trained, decay=decay, use_warmup=True, warmup_power=_WARMUP_POWER)
            if decay
            else None
        )

    def update(self, num_steps: int) -> None:
        """Adds the weights after `num_steps` steps to the average."""
        if self._average is not None:
            self._average.update(self._trained, step=num_steps)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Gives the network the averaged weights inside the block."""
        if self._average is None:
            yield
            return
        own = {name: value.clone() for name, value in self._trained.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self._trained.load_state_dict(own)

    def apply(self) -> None:
        """Loads the averaged weights into the network."""
        if self._average is not None:
            self._trained.load_state_dict(self._average.module.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`."""
        return {} if self._average is None else self._average.module.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Loads a stored state."""
        if self._average is not None:
            with torch.no_grad():
                self._average.module.load_state_dict(dict(state))
