"""Live progress on stderr: bars in a terminal, otherwise plain lines.

Prints of other libraries go to stderr as well, so that stdout contains results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from fitcompress.cli.console import error_console, show_notice
from fitcompress.events import (
    Emit,
    EpochFinished,
    Event,
    Notice,
    Progress,
    StageFinished,
    StageStarted,
    ignore,
)
from fitcompress.formatting import integer_text, percent_text

__all__ = ["BarProgress", "PlainProgress", "live_progress"]

_SECONDS_BETWEEN_LINES = 10.0

_STAGE_TITLES = {
    "teacher": "teacher",
    "stage1": "stage 1, hints",
    "stage2": "stage 2, distillation",
    "baseline": "baseline",
}


@contextmanager
def live_progress(*, quiet: bool = False) -> Iterator[Emit]:
    """A listener that draws events as bars if stderr is a terminal, otherwise as lines."""
    with redirect_stdout(sys.stderr):
        if quiet:
            yield ignore
        elif error_console().is_terminal:
            with _bars() as bars:
                yield BarProgress(bars)
        else:
            yield PlainProgress()


class PlainProgress:
    """Draws events as lines: one per epoch, and at most one per ten seconds in between."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_epochs: dict[str, int] = {}
        self._last_line_at = clock()
        self._notices: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            _show_once(event, self._notices, error_console())
        elif isinstance(event, StageStarted):
            self._num_epochs[event.stage] = event.num_epochs
            self._line(_started(event))
        elif isinstance(event, Progress):
            if self._clock() - self._last_line_at >= _SECONDS_BETWEEN_LINES:
                self._line(f"{self._epoch(event.stage, event.epoch)}  {_pace(event)}")
        elif isinstance(event, EpochFinished):
            self._line(f"{self._epoch(event.stage, event.epoch)} done  {_epoch_summary(event)}")
        elif isinstance(event, StageFinished):
            self._line(_finished(event))

    def _line(self, text: str) -> None:
        self._last_line_at = self._clock()
        error_console().print(text, soft_wrap=True)

    def _epoch(self, stage: str, epoch: int) -> str:
        return f"{_title(stage)}: epoch {epoch}/{self._num_epochs.get(stage, 0) or '?'}"


class BarProgress:
    """Draws events as bars, one per stage."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._steps_per_epoch: dict[str, int] = {}
        self._notices: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Notice):
            _show_once(event, self._notices, self._bars.console)
        elif isinstance(event, StageStarted):
            self._start(event)
        elif isinstance(event, Progress):
            self._move(event.stage, event.epoch - 1, event.step, _pace(event))
        elif isinstance(event, EpochFinished):
            self._move(event.stage, event.epoch, 0, _epoch_summary(event))
        elif isinstance(event, StageFinished):
            self._finish(event)

    def _start(self, event: StageStarted) -> None:
        steps = event.num_steps_per_epoch
        self._steps_per_epoch[event.stage] = steps
        self._tasks[event.stage] = self._bars.add_task(
            _title(event.stage),
            total=event.num_epochs * steps or None,
            completed=event.first_epoch * steps,
            detail="",
        )

    def _move(self, stage: str, epochs_done: int, step: int, detail: str) -> None:
        if stage in self._tasks:
            completed = epochs_done * self._steps_per_epoch[stage] + step
            self._bars.update(self._tasks[stage], completed=completed, detail=detail)

    def _finish(self, event: StageFinished) -> None:
        if event.stage in self._tasks:
            self._bars.remove_task(self._tasks.pop(event.stage))
        self._bars.console.print(_finished(event), soft_wrap=True)


def _bars() -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[detail]}", markup=False),
        console=error_console(),
        transient=True,
    )


def _show_once(notice: Notice, seen: set[str], console: Console) -> None:
    if notice.message not in seen:
        seen.add(notice.message)
        show_notice(notice.message, console)


def _title(stage: str) -> str:
    return _STAGE_TITLES.get(stage, stage)


def _started(event: StageStarted) -> str:
    if not event.num_epochs:
        return f"{_title(event.stage)}: started"
    epochs = f"{event.num_epochs} epoch{'s' if event.num_epochs > 1 else ''}"
    steps = f" of {event.num_steps_per_epoch} steps" if event.num_steps_per_epoch else ""
    resumed = f", {event.first_epoch} already done" if event.first_epoch else ""
    return f"{_title(event.stage)}: {epochs}{steps}{resumed}"


def _pace(event: Progress) -> str:
    return (
        f"{integer_text(event.images_per_s)} images/s  {_clock_time(event.seconds_left)} left"
        f"  {_losses(event.losses)}"
    )


def _epoch_summary(event: EpochFinished) -> str:
    held_out = {f"held-out {name}": value for name, value in event.held_out.items()}
    return f"{integer_text(event.images_per_s)} images/s  {_losses({**event.losses, **held_out})}"


def _finished(event: StageFinished) -> str:
    return f"{_title(event.stage)}: finished in {_clock_time(event.seconds)}"


def _losses(losses: Mapping[str, float]) -> str:
    return "  ".join(
        f"{name} {percent_text(value)}"
        if name.endswith(("top1", "agreement"))
        else f"{name} {value:.4g}"
        for name, value in losses.items()
    )


def _clock_time(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss; unknown times (NaN, infinite, negative) as "?"."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
