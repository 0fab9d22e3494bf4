"""Events as values and as records."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fitcompress.events import (
    EpochFinished,
    Event,
    Notice,
    Progress,
    StageFinished,
    StageStarted,
    event_record,
    ignore,
)

_EVENTS = [
    Notice(topic="data", message="2 images could not be read"),
    StageStarted(stage="stage1", num_epochs=3, num_steps_per_epoch=10),
    Progress(
        stage="stage1",
        epoch=1,
        step=2,
        num_images=64,
        images_per_s=100.0,
        seconds_left=9.0,
        losses={"loss": 0.5},
    ),
    EpochFinished(
        stage="stage1",
        epoch=1,
        losses={"loss": 0.5},
        held_out={"loss": 0.6},
        seconds=1.0,
        images_per_s=320.0,
    ),
    StageFinished(stage="stage1", seconds=3.0, num_images=960, detail={"epochs": 3}),
]


@pytest.mark.parametrize("event", _EVENTS, ids=lambda event: type(event).__name__)
def test_a_record_has_the_class_and_all_fields_and_is_json(event):
    record = json.loads(json.dumps(event_record(event)))

    assert record.pop("event") == type(event).__name__
    assert record == dataclasses.asdict(event)


def test_every_kind_of_event_is_tried_here():
    assert {type(event) for event in _EVENTS} == set(Event.__subclasses__())


@pytest.mark.parametrize("event", _EVENTS, ids=lambda event: type(event).__name__)
def test_events_cannot_be_changed(event):
    first = dataclasses.fields(event)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, first, "other")


def test_ignore_takes_any_event():
    assert ignore(_EVENTS[0]) is None
