"""Progress events, a few times a second at most. Layer: training."""

from __future__ import annotations

from time import monotonic

from fitcompress.events import Emit, Progress
from fitcompress.training.meter import LossMeter

__all__ = ["ProgressReporter"]

_SECONDS_BETWEEN_REPORTS = 0.25


class ProgressReporter:
    """Tells the listener how far a stage is; rates are those of this session, held-out evaluation
    included.
    """

    def __init__(
        self, stage: str, emit: Emit, *, num_steps: int, first_step: int, batch_size: int
    ) -> None:
        self._stage, self._emit = stage, emit
        self._num_steps, self._first_step, self._batch_size = num_steps, first_step, batch_size
        self._started = self._last = monotonic()

    def report(self, meter: LossMeter, *, epoch: int, step: int, num_steps_done: int) -> bool:
        """Sends a report if the last one is old enough, and says whether it did.

        Args:
            meter: of the epoch under way; reading it waits for the device.
            epoch: under way, from 1.
            step: done in that epoch.
            num_steps_done: in the whole stage.
        """
        now = monotonic()
        if now - self._last < _SECONDS_BETWEEN_REPORTS:
            return False
        self._last = now
        seconds_per_step = (now - self._started) / max(num_steps_done - self._first_step, 1)
        self._emit(
            Progress(
                stage=self._stage,
                epoch=epoch,
                step=step,
                num_images=num_steps_done * self._batch_size,
                images_per_s=self._batch_size / seconds_per_step,
                seconds_left=seconds_per_step * (self._num_steps - num_steps_done),
                losses=meter.means(),
            )
        )
        return True
