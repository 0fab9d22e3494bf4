"""Ending a stage where it no longer gains, with the weights of its best epoch. Layer: training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fitcompress.training.fsdp import load_in_shards

__all__ = ["BestWeights"]


class BestWeights:
    """The weights after the epoch with the best held-out score: the most right where that is known,
    else the least loss; the first of several.

    Args:
        trained: what is trained; it is changed by `settle` alone.
        patience: epochs without a better one after which there is no more; None trains to the end,
            and all of this does nothing.
    """

    def __init__(self, trained: nn.Module, patience: int | None) -> None:
        self._trained, self._patience = trained, patience
        self._weights: dict[str, Tensor] = {}

    def look(
        self, history: Sequence[Mapping[str, Any]], weights: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Takes the weights after the last epoch of the history if that was the best."""
        if self._patience and _best(history) == len(history):
            own = weights()
            self._weights = {name: value.detach().cpu().clone() for name, value in own.items()}

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether no better epoch came for as long as one waits."""
        return self._patience is not None and len(history) - _best(history) >= self._patience

    def settle(self) -> None:
        """Gives the network the best weights for good."""
        if self._weights:
            load_in_shards(self._trained, self._weights)

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return self._weights

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a stored state."""
        self._weights = dict(state)


def _best(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of the best epoch, from 1; 0 before the first.

    >>> _best([{"held_out": {"loss": value}} for value in (3.0, 1.0, 2.0, 1.0)])
    2
    """
    scores = [epoch["held_out"].get("top1", -epoch["held_out"]["loss"]) for epoch in history]
    return scores.index(max(scores)) + 1 if scores else 0
