"""Signals request a stop; the previous handlers are restored."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from fitcompress.training.signals import Interrupted, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_sets_the_request(number):
    with stop_on_signals() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        assert stop.is_set


def test_a_second_signal_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), stop_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_previous_handlers_are_restored_even_after_an_error():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="inside"), stop_on_signals():
        raise ValueError("inside")
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_is_installed():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with stop_on_signals() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.is_set))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_a_forked_worker_survives_any_number_of_signals():
    with stop_on_signals():
        child = os.fork()
        if child == 0:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_interrupted_is_a_keyboard_interrupt_that_names_stage_and_file():
    error = Interrupted("stage1", Path("stage1.pt"))
    assert isinstance(error, KeyboardInterrupt) and not isinstance(error, Exception)
    assert "stage1.pt" in str(error) and error.stage == "stage1"
