"""Runs that cache the teacher's outputs: same losses, no work twice, nothing left behind."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from helpers.toy_runs import toy_recipe, toy_teacher, write_images

from fitcompress.data.images import ArrayImages
from fitcompress.data.views import make_dataset
from fitcompress.events import EpochFinished, Event, Notice, StageStarted
from fitcompress.interface import InputSpec
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.run.cache_policy import TeacherCache
from fitcompress.run.distill import distill

CACHING = "teacher outputs, "
"""Prefix of the stages that fill a cache."""


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


def filled(events: list[Event]) -> list[str]:
    """The caches that were filled, in order."""
    names = [event.stage for event in events if isinstance(event, StageStarted)]
    return [name.removeprefix(CACHING) for name in names if name.startswith(CACHING)]


def notices(events: list[Event]) -> dict[str, list[str]]:
    """The messages of each code."""
    found: dict[str, list[str]] = defaultdict(list)
    for event in events:
        if isinstance(event, Notice):
            found[event.code].append(event.message)
    return found


@pytest.fixture(scope="module")
def cached_run(images, tmp_path_factory) -> tuple[Path, list[Event]]:
    out = tmp_path_factory.mktemp("runs") / "cached"
    return out, run(images, out)


def test_a_run_with_a_cache_has_the_losses_of_one_without(cached_run, images, tmp_path):
    _, events = cached_run
    plain = run(images, tmp_path / "plain", run__cache_teacher="off")
    assert filled(events) == [
        "stage1 train",
        "stage1 held out",
        "stage2 train",
        "stage2 held out",
    ]
    assert not filled(plain)
    assert len(losses(events)) == 7
    for own, other in zip(losses(events), losses(plain), strict=True):
        # the teacher sees other batches, and a few epochs of training amplify the last bits
        assert own == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_finished_run_leaves_no_cache_behind(cached_run):
    out, _ = cached_run
    assert not (out / "cache").exists()
    assert set(json.loads((out / "cache.json").read_text())) == {
        f"{stage} {split}" for stage in ("stage1", "stage2") for split in ("train", "held out")
    }


def test_a_cache_in_a_given_folder_serves_the_next_run(images, tmp_path):
    folder = str(tmp_path / "cache")
    first = run(images, tmp_path / "first", run__cache_teacher=folder)
    second = run(images, tmp_path / "second", run__cache_teacher=folder)
    assert len(filled(first)) == 4 and not filled(second)
    assert losses(first) == losses(second)
    other = run(images, tmp_path / "other", run__cache_teacher=folder, run__seed=1)
    assert len(filled(other)) == 4


def test_outputs_that_would_take_too_much_space_are_not_cached(images, tmp_path):
    events = run(images, tmp_path / "run", run__cache_gb=1e-6)
    (first, *_) = notices(events)["teacher-cache-too-large"]
    assert first.startswith("stage1: ") and "train images" in first
    assert filled(events) == ["stage2 held out"]  # 100 bytes of logits


def test_outputs_for_views_that_never_repeat_are_not_cached(images, tmp_path):
    events = run(images, tmp_path / "run", data__views="none")
    assert filled(events) == ["stage1 held out", "stage2 held out"]
    assert "views-not-repeated" not in notices(events)
    folder = str(tmp_path / "cache")
    shared = run(images, tmp_path / "shared", data__views="none", run__cache_teacher=folder)
    assert len(notices(shared)["views-not-repeated"]) == 2  # stages


def test_outputs_for_plain_images_are_cached(images, tmp_path):
    events = run(images, tmp_path / "run", data__augment="none", data__views="none")
    assert len(filled(events)) == 4


def test_the_key_of_a_cache_stays_the_same():
    settings = {"teacher.source": "resnet18", "data.source": "images", "data.limit": 100}
    recipe = resolve_recipe(preset="modern", settings=settings | {"run.seed": 3})
    spec = InputSpec(shape=(1, 4, 4), mean=(0.5,), std=(0.25,))
    images = ArrayImages(np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 2, 0, 1, 2]))
    data = make_dataset(images, spec, augment="crop", seed=3, mixup=0.2, num_views=2)
    cache = TeacherCache("stage1", recipe, None, "cpu", None, "a1b2 ['layer3']")

    # as 0.1.0 computed it: caches that it wrote are found
    assert cache._key(data) == "955fc499cb3cde1ad5cca8a8042da3008fa83c698fb8f785b5455ea4350a9cdf"
