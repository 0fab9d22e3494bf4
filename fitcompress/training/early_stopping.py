"""Early stopping: end a stage that no longer improves, with the weights of its best epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fitcompress.training.fsdp import load_full_state

__all__ = ["BestWeights"]


class BestWeights:
    """The weights after the epoch with the best held-out score: the highest top-1 accuracy if it
    is known, otherwise the lowest loss. The first of equals is the best.

    Args:
        trained: the trained network; only `apply` modifies it.
        patience: epochs without improvement after which the stage ends; None disables early
            stopping.
    """

    def __init__(self, trained: nn.Module, patience: int | None) -> None:
        self._trained, self._patience = trained, patience
        self._weights: dict[str, Tensor] = {}

    def update(
        self, history: Sequence[Mapping[str, Any]], weights: Callable[[], Mapping[str, Tensor]]
    ) -> None:
        """Stores the weights if the last epoch of the history is the best."""
        if self._patience and _best_epoch(history) == len(history):
            state = weights()
            self._weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def is_over(self, history: Sequence[Mapping[str, Any]]) -> bool:
        """Whether `patience` epochs have passed without improvement."""
        return self._patience is not None and len(history) - _best_epoch(history) >= self._patience

    def apply(self) -> None:
        """Loads the best weights into the network."""
        if self._weights:
            load_full_state(self._trained, self._weights)

    def state(self) -> dict[str, Tensor]:
        """The state for `restore`."""
        return self._weights

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Loads a stored state."""
        self._weights = dict(state)


def _best_epoch(history: Sequence[Mapping[str, Any]]) -> int:
    """The number of the best epoch, from 1; 0 before the first.

    >>> _best_epoch([{"held_out": {"loss": value}} for value in (3.0, 1.0, 2.0, 1.0)])
    2
    """
    scores = [epoch["held_out"].get("top1", -epoch["held_out"]["loss"]) for epoch in history]
    return scores.index(max(scores)) + 1 if scores else 0
