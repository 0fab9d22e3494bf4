"""A moving average of what is trained. Layer: training."""

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
"""The first n steps are averaged with a decay of 1 - n^-0.75, so that the start is forgotten."""


class WeightAverage:
    """The exponential moving average of a network's weights and running statistics over the steps
    (Polyak and Juditsky, 1992), by timm.

    Args:
        trained: where it is trained; it is not changed but by `shown` and `settle`.
        decay: weight of the past at each step, such as 0.999; 0 keeps no average, and all of this
            does nothing.

    Raises:
        TrainingError: the network lies in shards, which cannot be copied.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
        if decay and any(isinstance(part, FSDPModule) for part in trained.modules()):
            raise TrainingError(
                "averaging the weights: there is no average of networks in shards",
                advice="Use ema = 0, or leave out --shard.",
            )
        self._trained = trained
        self._average = (
            ModelEmaV3(trained, decay=decay, use_warmup=True, warmup_power=_WARMUP_POWER)
            if decay
            else None
        )

    def update(self, num_steps: int) -> None:
        """Takes in the weights after so many steps."""
        if self._average is not None:
            self._average.update(self._trained, step=num_steps)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Inside, the network has the average's weights; they come back at the end."""
        if self._average is None:
            yield
            return
        own = {name: value.clone() for name, value in self._trained.state_dict().items()}
        self.settle()
        try:
            yield
        finally:
            self._trained.load_state_dict(own)

    def settle(self) -> None:
        """Gives the network the average's weights for good."""
        if self._average is not None:
            self._trained.load_state_dict(self._average.module.state_dict())

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return {} if self._average is None else self._average.module.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a stored state."""
        if self._average is not None:
            with torch.no_grad():
                self._average.module.load_state_dict(dict(state))
