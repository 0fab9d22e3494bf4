"""ONNX files from elsewhere, and damaged ones; exported files are read back in test_formats."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fitcompress.errors import ExportError
from fitcompress.evaluation.benchmark import paired_latency
from fitcompress.exporters.onnx_session import onnx_runner, open_onnx
from fitcompress.interface import InputSpec, Interface, interface_to_metadata

INTERFACE = Interface(input=InputSpec(shape=(1, 2, 2), mean=(0.0,), std=(1.0,)))


def write_doubler(path: Path, metadata: dict[str, str]) -> None:
    """A file that doubles its input."""
    shape = ["batch", 1, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "doubler",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)


def test_a_file_without_metadata_needs_an_interface(tmp_path: Path) -> None:
    write_doubler(tmp_path / "x.onnx", {})
    with pytest.raises(ExportError) as caught:
        open_onnx(tmp_path / "x.onnx")
    assert caught.value.code == "onnx-metadata-missing"
    network = open_onnx(tmp_path / "x.onnx", INTERFACE)
    images = torch.randn(3, 1, 2, 2)
    assert torch.equal(network(images), 2 * images)


def test_a_file_is_timed_in_its_own_runtime(tmp_path: Path) -> None:
    write_doubler(tmp_path / "x.onnx", interface_to_metadata(INTERFACE, "1.0"))
    measured = paired_latency({"x": onnx_runner(tmp_path / "x.onnx")}, (1, 2), num_runs=5)
    assert {batch: timing.n for batch, timing in measured["x"].items()} == {"1": 5, "2": 5}


@pytest.mark.parametrize(
    ("content", "code"), [(None, "onnx-file-missing"), (b"not onnx", "onnx-file-unreadable")]
)
def test_a_file_that_cannot_be_opened_is_named(
    tmp_path: Path, content: bytes | None, code: str
) -> None:
    path = tmp_path / "x.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ExportError, match=r"x\.onnx") as caught:
        open_onnx(path)
    assert caught.value.code == code


def test_an_idle_session_does_not_spin(tmp_path):
    """Threads that spin between calls doubled the time of a network timed in turns."""
    write_doubler(tmp_path / "a.onnx", interface_to_metadata(INTERFACE, "0"))
    options = open_onnx(tmp_path / "a.onnx").session.get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
