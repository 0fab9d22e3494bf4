"""Runs that keep the teacher's answers: the same losses, no work twice, nothing left behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.toy_runs import toy_recipe, toy_teacher, write_images

from fitcompress.events import EpochFinished, Event, Notice, StageStarted
from fitcompress.run.distill import distill

ANSWERS = "teacher's answers"


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


def run(images: Path, out: Path, **settings) -> list[Event]:
    events: list[Event] = []
    usual = {"data__augment": "crop", "data__views": 2, "stage1__epochs": 3, "stage2__epochs": 4}
    recipe = toy_recipe(images, out, **(usual | settings))
    distill(recipe, teacher=toy_teacher(), emit=events.append)
    return events


def losses(events: list[Event]) -> list[dict[str, float]]:
    return [{**e.losses, **e.held_out} for e in events if isinstance(e, EpochFinished)]


def answered(events: list[Event]) -> list[str]:
    """What was asked about, in order."""
    names = [event.stage for event in events if isinstance(event, StageStarted)]
    return [name.partition(", ")[2] for name in names if name.startswith(ANSWERS)]


def notices(events: list[Event]) -> str:
    return "\n".join(event.message for event in events if isinstance(event, Notice))


@pytest.fixture(scope="module")
def kept(images, tmp_path_factory) -> tuple[Path, list[Event]]:
    out = tmp_path_factory.mktemp("runs") / "kept"
    return out, run(images, out)


def test_a_run_with_kept_answers_has_the_losses_of_one_without(kept, images, tmp_path):
    _, events = kept
    plain = run(images, tmp_path / "plain", run__cache_teacher="off")
    assert answered(events) == [
        "stage1 train",
        "stage1 held out",
        "stage2 train",
        "stage2 held out",
    ]
    assert not answered(plain)
    assert len(losses(events)) == 7
    for own, other in zip(losses(events), losses(plain), strict=True):
        # the teacher sees other batches, and a few epochs of training amplify the last bits
        assert own == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_finished_run_leaves_no_answers_behind(kept):
    out, _ = kept
    assert not (out / "cache").exists()
    assert set(json.loads((out / "cache.json").read_text())) == {
        f"{stage} {split}" for stage in ("stage1", "stage2") for split in ("train", "held out")
    }


def test_answers_in_a_folder_of_one_s_own_serve_the_next_run(images, tmp_path):
    folder = str(tmp_path / "answers")
    first = run(images, tmp_path / "first", run__cache_teacher=folder)
    second = run(images, tmp_path / "second", run__cache_teacher=folder)
    assert len(answered(first)) == 4 and not answered(second)
    assert losses(first) == losses(second)
    other = run(images, tmp_path / "other", run__cache_teacher=folder, run__seed=1)
    assert len(answered(other)) == 4


def test_answers_that_would_take_too_much_are_not_kept(images, tmp_path):
    events = run(images, tmp_path / "run", run__cache_gb=1e-6)
    assert "stage1: the teacher's answers to the train images would take" in notices(events)
    assert answered(events) == ["stage2 held out"]  # 100 bytes of logits


def test_views_that_never_come_again_are_not_asked_about(images, tmp_path):
    events = run(images, tmp_path / "run", data__views="none")
    assert answered(events) == ["stage1 held out", "stage2 held out"]
    assert "views" not in notices(events)
    folder = str(tmp_path / "answers")
    told = run(images, tmp_path / "told", data__views="none", run__cache_teacher=folder)
    assert "every epoch has new views of the train images" in notices(told)


def test_plain_images_are_asked_about_once(images, tmp_path):
    events = run(images, tmp_path / "run", data__augment="none", data__views="none")
    assert len(answered(events)) == 4
