"""Progress events, at most a few per second."""

from __future__ import annotations

from time import monotonic

from fitcompress.events import Emit, Progress
from fitcompress.training.meter import LossMeter

__all__ = ["ProgressReporter"]

_SECONDS_BETWEEN_REPORTS = 0.25


class ProgressReporter:
    """Emits the progress of a stage. Rates are averages since the reporter was made, including
    held-out evaluation.
    """

    def __init__(
        self, stage: str, emit: Emit, *, num_steps: int, first_step: int, batch_size: int
    ) -> None:
        self._stage, self._emit = stage, emit
        self._num_steps, self._first_step, self._batch_size = num_steps, first_step, batch_size
        self._started = self._last = monotonic()

    def report(self, meter: LossMeter, *, epoch: int, step: int, num_steps_done: int) -> bool:
        """Emits an event if the last one is old enough; returns whether it did.

        Args:
            meter: losses of the current epoch; reading them waits for the device.
            epoch: the current epoch, from 1.
            step: steps done in it.
            num_steps_done: steps done in the stage.
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
