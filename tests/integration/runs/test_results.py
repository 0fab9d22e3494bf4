"""What a run measures when it ends, on a run that is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.predictions import load_predictions
from helpers.toy_runs import NAMES, toy_recipe, toy_teacher, write_images
from PIL import Image

from fitcompress.api import load_comparison
from fitcompress.data.bundle import load_data
from fitcompress.report.comparison import NotTested
from fitcompress.run.distill import distill


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """A run with a baseline, timed in onnxruntime too."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.manual_seed(0)
    recipe = toy_recipe(
        images, out, run__baseline=True, run__timing="all", stage1__epochs=0, stage2__epochs=1
    )
    distill(recipe, teacher=toy_teacher())
    return out


def test_results_say_where_the_networks_err_and_what_they_take(finished):
    results = json.loads((finished / "results.json").read_text())
    stored = load_predictions(finished / "predictions.safetensors")
    differing = int((stored["teacher"].choices_N != stored["student"].choices_N).sum())

    for name in ("teacher", "student", "baseline"):
        assert results[name]["calibration"]["n"] == 30
        assert results[name]["latency_ms"].keys() == {"torch", "onnxruntime"}
        assert results[name]["peak_memory_bytes"].keys() == {"1", "32"}
        shares = [row[name]["top1"] for row in results["classes"]]
        assert sum(shares) / 3 == pytest.approx(results[name]["accuracy"]["top1"])
    assert [row["name"] for row in results["classes"]] == list(NAMES)
    assert sum(row["n"] for row in results["disagreements"]) == differing
    assert len(results["doubts"]) == 12
    assert len(results["data"]["evaluation_digest"]) == 64


def test_a_picture_leaves_behind_what_its_file_says(tmp_path):
    """The place and camera of a user's photo, and a colour profile larger than the picture."""
    images = write_images(tmp_path / "images", num_train=4, num_test=2)
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    for path in (images / "test").rglob("*.png"):
        with Image.open(path) as picture:
            picture.resize((200, 100)).save(path, exif=exif, icc_profile=b"x" * 500)
    recipe = toy_recipe(images, tmp_path / "run", stage1__epochs=0, stage2__epochs=0)
    distill(recipe, teacher=toy_teacher())

    kept = list((tmp_path / "run/thumbnails").iterdir())
    assert len(kept) == 6
    for path in kept:
        with Image.open(path) as picture:
            assert picture.size == (64, 32)
            assert picture.info == {}


def test_the_images_in_doubt_are_kept_small(finished, images):
    results = json.loads((finished / "results.json").read_text())
    data = load_data(toy_recipe(images, finished).data, seed=0, emit=print)

    for doubt in results["doubts"]:
        with Image.open(finished / doubt["thumbnail"]) as picture:
            assert picture.format == "PNG"
            assert max(picture.size) <= 64
            assert picture.tobytes() == data.evaluation.load(doubt["id"]).tobytes()


def test_runs_on_the_same_images_are_compared_and_others_are_not(finished, images, tmp_path):
    more = write_images(tmp_path / "more", num_test=11)
    for name, folder in (("same", images), ("other", more)):
        recipe = toy_recipe(folder, tmp_path / name, stage1__epochs=0, stage2__epochs=0)
        distill(recipe, teacher=toy_teacher())

    same, other = load_comparison([finished, tmp_path / "same", tmp_path / "other"]).tests

    assert same.n == 30
    assert 0 < same.p_holm <= 1
    assert other == NotTested(reason="measured on different images")
