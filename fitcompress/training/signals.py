"""Ctrl-C and SIGTERM as a request to stop after the current step."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "StopRequest", "stop_on_signals"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and saved its state; the command line exits with 130."""

    def __init__(self, stage: str, checkpoint_path: Path) -> None:
        super().__init__(f"stopped in {stage}; progress is saved in {checkpoint_path}")
        self.stage = stage
        self.checkpoint_path = checkpoint_path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.stage, self.checkpoint_path)


class StopRequest:
    """Whether a signal has requested a stop."""

    is_set = False


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT or SIGTERM into a set `StopRequest`; a second one raises
    `KeyboardInterrupt` at once.

    Outside the main thread, where Python allows no handlers, the request is never set. The previous
    handlers are restored.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    owner = os.getpid()

    def handle(_signum: int, _frame: FrameType | None) -> None:
        # Forked data workers inherit the handler: there Ctrl-C must not raise, or the batch that
        # the worker is loading would be lost.
        if request.is_set and os.getpid() == owner:
            raise KeyboardInterrupt
        request.is_set = True

    previous = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
