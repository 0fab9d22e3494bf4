"""Losses and scores are logged to a tracker by stage, as they come."""

from __future__ import annotations

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from fitcompress.errors import RunError
from fitcompress.events import EpochFinished, Notice, Progress
from fitcompress.run.trackers import log_to_tracker


class Kept(GeneralTracker):
    """A tracker that stores what is logged to it."""

    name, requires_logging_directory = "kept", True
    made: list[Kept] = []  # noqa: RUF012

    def __init__(self, run_name, logging_dir):
        super().__init__()
        self.run_name, self.logging_dir, self.lines = run_name, logging_dir, []
        Kept.made.append(self)

    def start(self):
        self.is_started = True

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.settings = values

    def log(self, values, step, **more):
        self.lines.append((step, values))


EPOCH = EpochFinished(
    stage="stage2",
    epoch=3,
    losses={"loss": 0.5},
    held_out={"top1": 0.9},
    seconds=1.0,
    images_per_s=7.0,
)


def test_epochs_and_steps_are_logged_and_passed_on(tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Kept)
    seen = []
    settings = {"run.seed": 3, "teacher.mean": (0.5, 0.5)}
    emit = log_to_tracker("tensorboard", tmp_path / "r18", settings, seen.append)
    step = Progress(
        stage="stage2",
        epoch=1,
        step=2,
        num_images=128,
        images_per_s=7.0,
        seconds_left=1.0,
        losses={"loss": 2.0},
    )
    for event in (step, EPOCH, Notice(topic="run", message="x")):
        emit(event)
    (kept,) = Kept.made
    assert kept.run_name == "r18" and kept.is_started
    assert kept.logging_dir == str(tmp_path / "r18" / "logs")
    assert kept.settings == {"run.seed": 3, "teacher.mean": "(0.5, 0.5)"}
    assert kept.lines == [
        (128, {"stage2/step/loss": 2.0}),
        (3, {"stage2/loss": 0.5, "stage2/held_out/top1": 0.9, "stage2/images_per_s": 7.0}),
    ]
    assert len(seen) == 3


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
    class Absent(Kept):
        def start(self):
            raise ModuleNotFoundError("No module named 'wandb'")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Absent)
    with pytest.raises(RunError) as caught:
        log_to_tracker("wandb", tmp_path, {}, print)
    assert (caught.value.code, caught.value.facts) == ("tracker-not-installed", {"tool": "wandb"})
    assert "pip install wandb" in caught.value.advice


def test_a_tracker_that_does_not_start_is_named(tmp_path, monkeypatch):
    class Broken(Kept):
        def start(self):
            raise OSError("no route to host")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Broken)
    with pytest.raises(RunError, match="no route to host") as caught:
        log_to_tracker("wandb", tmp_path, {}, print)
    assert (caught.value.code, caught.value.facts) == ("tracker-failed", {"tool": "wandb"})


def test_without_a_tracker_the_listener_is_returned(tmp_path):
    assert log_to_tracker("none", tmp_path, {}, print) is print
