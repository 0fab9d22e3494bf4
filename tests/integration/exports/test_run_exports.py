"""ONNX files of a run: every kind is written, checked, scored and timed, from one `export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from helpers.toy_runs import NAMES, SPEC, toy_recipe, toy_teacher, write_images
from PIL import Image

import fitcompress
from fitcompress.errors import ExportError
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.recipe.fields import with_settings
from fitcompress.recipe.recipe import load_recipe, recipe_to_toml
from fitcompress.run.distill import distill

KINDS = ["onnx", "onnx-fp16", "onnx-int8", "onnx-pixels"]
OPSET = 18


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


@pytest.fixture(scope="module")
def run(images, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    torch.manual_seed(0)
    recipe = toy_recipe(images, out, student__width_mult=1.0, run__timing="none")
    distill(recipe, teacher=toy_teacher())
    return out


@pytest.fixture(scope="module")
def records(run) -> dict[str, dict[str, Any]]:
    exported = fitcompress.export(run, KINDS[:3], opset=OPSET)
    # Files are timed from here on: once is enough.
    timed = with_settings(load_recipe(run / "recipe.toml"), {"run.timing": "all"})
    (run / "recipe.toml").write_text(recipe_to_toml(timed))
    exported += fitcompress.export(run, KINDS[3:], opset=OPSET)
    return {record["format"]: record for record in exported}


@pytest.fixture(scope="module")
def samples(images) -> tuple[torch.Tensor, torch.Tensor]:
    """The test images as they are stored (N, C, H, W), uint8, and their labels."""
    files = [
        (path, label)
        for label, name in enumerate(NAMES)
        for path in sorted((images / "test" / name).iterdir())
    ]
    pixels = np.stack([np.asarray(Image.open(path)) for path, _ in files])
    labels = torch.tensor([label for _, label in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def network_inputs(kind: str, pixels: torch.Tensor) -> torch.Tensor:
    if kind == "onnx-pixels":
        return pixels
    return (pixels / 255 - SPEC.mean[0]) / SPEC.std[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_accuracy_is_that_of_the_file_on_the_evaluation_split(kind, records, samples):
    pixels, labels = samples
    outputs = open_onnx(Path(records[kind]["path"]))(network_inputs(kind, pixels))
    share = float((outputs.argmax(1) == labels).float().mean())

    assert records[kind]["accuracy"]["n"] == len(labels) == 30
    assert records[kind]["accuracy"]["top1"] == pytest.approx(share)
    assert share > 0.8


def test_files_compute_what_the_student_computes(run, records, samples):
    pixels, _ = samples
    student = fitcompress.load(run)
    with torch.no_grad():
        logits = student(network_inputs("onnx", pixels))
    tolerances = {"onnx": 1e-4, "onnx-fp16": 3e-2, "onnx-int8": 0.5, "onnx-pixels": 1e-4}
    for kind, tolerance in tolerances.items():
        expected = logits.softmax(1) if kind == "onnx-pixels" else logits
        outputs = open_onnx(Path(records[kind]["path"]))(network_inputs(kind, pixels))
        difference = float((outputs - expected).abs().max() / expected.abs().max())
        assert difference < tolerance, kind
        assert records[kind]["max_rel_diff"] < tolerance, kind
        assert difference > 1e-6 or kind in ("onnx", "onnx-pixels"), f"{kind} is not reduced"


def test_weights_have_the_precision_of_the_format_and_graphs_the_opset(records):
    types = {
        "onnx": {"FLOAT"},
        "onnx-fp16": {"FLOAT16"},
        "onnx-int8": {"INT8"},
        "onnx-pixels": {"FLOAT"},
    }
    for kind, expected in types.items():
        model = onnx.load(records[kind]["path"])
        weights = [value for value in model.graph.initializer if len(value.dims) == 4]
        names = {onnx.TensorProto.DataType.Name(value.data_type) for value in weights}
        assert names == expected, kind
        assert {e.domain: e.version for e in model.opset_import}[""] == OPSET, kind
        assert records[kind]["size_bytes"] == Path(records[kind]["path"]).stat().st_size
    assert records["onnx-fp16"]["size_bytes"] < 0.8 * records["onnx"]["size_bytes"]


def test_preprocessing_inside_takes_pixels_and_gives_probabilities(records, samples):
    network = open_onnx(Path(records["onnx-pixels"]["path"]))
    shares = network(samples[0])

    assert network.takes_pixels
    assert network.interface.activation == "softmax"
    assert [output.name for output in network.session.get_outputs()] == ["probabilities"]
    torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))


def test_a_file_is_timed_beside_the_plain_one_where_the_recipe_says_so(records):
    assert all("latency" not in records[kind] for kind in KINDS[:3])
    times = records[KINDS[3]]["latency"]
    assert list(times) == ["1", "32"]
    for time in times.values():
        low, high = time["speedup_range"]
        assert 0 < low <= time["speedup"] <= high


def test_records_are_kept_and_files_replaced_only_with_force(run, records):
    written = json.loads((run / "exports.json").read_text())
    assert [record["format"] for record in written] == KINDS
    assert written == json.loads(json.dumps(list(records.values())))
    with pytest.raises(ExportError) as caught:
        fitcompress.export(run, ["onnx-fp16"])
    assert caught.value.code == "export-exists"
    assert caught.value.facts["path"] == str(run / "exports/student.fp16.onnx")
