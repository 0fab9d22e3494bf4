"""Progress as lines and as bars, with a clock of the test's own."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.progress import Progress as Bars

from fitcompress.cli import progress
from fitcompress.cli.progress import BarProgress, PlainProgress, live_progress
from fitcompress.events import EpochFinished, Notice, Progress, StageFinished, StageStarted, ignore


class Clock:
    """Seconds that pass when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def step(number: int, *, epoch: int = 1, seconds_left: float = 75.0) -> Progress:
    return Progress(
        stage="stage1",
        epoch=epoch,
        step=number,
        num_images=64 * number,
        images_per_s=1234.5,
        seconds_left=seconds_left,
        losses={"loss": 0.51234, "hint": 0.25},
    )


EPOCH = EpochFinished(
    stage="stage1",
    epoch=1,
    losses={"loss": 0.5},
    held_out={"loss": 0.625, "top1": 0.912},
    seconds=10.0,
    images_per_s=1000.0,
)
STARTED = StageStarted(stage="stage1", num_epochs=3, num_steps_per_epoch=10)
FINISHED = StageFinished(stage="stage1", seconds=3725.0, num_images=960, detail={})


def test_lines_tell_of_stages_epochs_and_the_end(capsys):
    emit = PlainProgress(clock=Clock())

    for event in (STARTED, EPOCH, FINISHED):
        emit(event)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "stage 1, hints: 3 epochs of 10 steps\n"
        "stage 1, hints: epoch 1/3 done  1,000 images/s  loss 0.5  held-out loss 0.625"
        "  held-out top1 91.2 %\n"
        "stage 1, hints: finished in 1:02:05\n"
    )


def test_between_epochs_a_line_comes_every_ten_seconds_at_most(capsys):
    clock = Clock()
    emit = PlainProgress(clock=clock)
    emit(STARTED)
    capsys.readouterr()

    for number in range(25):
        clock.now = float(number)
        emit(step(number))

    assert capsys.readouterr().err == (
        "stage 1, hints: epoch 1/3  1,234 images/s  1:15 left  loss 0.5123  hint 0.25\n" * 2
    )


def test_an_epoch_line_postpones_the_next_line(capsys):
    clock = Clock()
    emit = PlainProgress(clock=clock)
    emit(STARTED)
    clock.now = 9.0
    emit(EPOCH)
    capsys.readouterr()

    clock.now = 18.0
    emit(step(1, epoch=2))

    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (StageStarted(stage="export"), "export: started\n"),
        (
            StageStarted(stage="stage2", num_epochs=5, num_steps_per_epoch=7, first_epoch=2),
            "stage 2, distillation: 5 epochs of 7 steps, 2 already done\n",
        ),
        (StageStarted(stage="teacher", num_epochs=1), "teacher: 1 epoch\n"),
        (
            StageFinished(stage="export", seconds=4.4, num_images=0, detail={}),
            "export: finished in 0:04\n",
        ),
    ],
)
def test_a_stage_is_announced_by_what_is_known(capsys, event, line):
    PlainProgress()(event)

    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    "make", [PlainProgress, lambda: BarProgress(Bars(console=Console(stderr=True, width=100)))]
)
def test_a_notice_is_shown_once(capsys, make):
    emit = make()

    emit(Notice(topic="data", message="built-in images"))
    emit(Notice(topic="data", message="built-in images"))
    emit(Notice(topic="plan", message="3 places are frozen"))

    assert capsys.readouterr().err == "note: built-in images\nnote: 3 places are frozen\n"


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_an_unknown_time_is_a_question_mark(capsys, seconds):
    clock = Clock()
    emit = PlainProgress(clock=clock)
    clock.now = 11.0

    emit(step(1, seconds_left=seconds))

    assert "  ? left  " in capsys.readouterr().err


def test_bars_follow_steps_and_resumed_epochs_and_leave_at_the_end():
    bars = Bars(console=Console(file=io.StringIO(), width=100))
    emit = BarProgress(bars)

    emit(StageStarted(stage="stage1", num_epochs=3, num_steps_per_epoch=10, first_epoch=1))
    [task] = bars.tasks
    assert (task.description, task.total, task.completed) == ("stage 1, hints", 30, 10)
    emit(step(4, epoch=2))
    assert task.completed == 14
    assert "1,234 images/s  1:15 left" in task.fields["detail"]
    emit(EPOCH)
    assert task.completed == 10
    emit(FINISHED)

    assert bars.tasks == []
    assert "finished in 1:02:05" in bars.console.file.getvalue()


def test_a_step_without_epochs_is_a_bar_without_an_end():
    bars = Bars(console=Console(file=io.StringIO(), width=100))

    BarProgress(bars)(StageStarted(stage="export"))

    assert bars.tasks[0].total is None


def test_events_of_a_stage_that_was_not_announced_draw_no_bar():
    bars = Bars(console=Console(file=io.StringIO(), width=100))
    emit = BarProgress(bars)

    emit(step(1))
    emit(EPOCH)
    emit(FINISHED)

    assert bars.tasks == []


def test_without_a_terminal_there_are_lines_and_prints_go_to_stderr(capsys):
    with live_progress() as emit:
        assert isinstance(emit, PlainProgress)
        print("a library talks")

    assert (capsys.readouterr()) == ("", "a library talks\n")


def test_quiet_listens_to_nothing():
    with live_progress(quiet=True) as emit:
        assert emit is ignore


def test_in_a_terminal_there_are_bars(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(progress, "error_console", lambda: console)
    before = sys.stdout

    with live_progress() as emit:
        assert isinstance(emit, BarProgress)
        emit(STARTED)
        emit(step(1))
        emit(Notice(topic="data", message="built-in images"))
        emit(FINISHED)

    assert sys.stdout is before
    assert "built-in images" in screen.getvalue()
    assert "stage 1, hints" in screen.getvalue()


def test_stdout_is_given_back_after_an_error():
    before = sys.stdout

    with pytest.raises(ValueError, match="x"), live_progress():
        raise ValueError("x")

    assert sys.stdout is before
