"""`export --python`: readable code and weights that compute what the student computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import small_nets
from torch import nn

from fitcompress.errors import ExportError
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import FORMATS, export_model
from fitcompress.exporters.python.standalone import open_python, write_python
from fitcompress.graph.capture.eager import capture_module
from fitcompress.interface import InputSpec, Interface
from fitcompress.models.model import load_model, save_model

INTERFACE = Interface(
    input=InputSpec(shape=(3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.1)),
    class_names=tuple("abcde"),
    origin={"teacher": "tiny"},
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder."""
    network = small_nets.trained_a_little(small_nets.Residual())
    program = capture_module(network, (torch.randn(2, 3, 8, 8),))
    save_model(tmp_path / "student", program, {}, INTERFACE)
    return tmp_path / "student"


def exportable_of(folder: Path) -> Exportable:
    model = load_model(folder)
    return Exportable(model.network, model.interface, torch.randn(8, 3, 8, 8), folder)


def test_the_export_computes_the_same_bits(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / f"out{FORMATS['python'].suffix}"
    record = export_model("python", exportable_of(folder), path)

    assert record.max_abs_diff == 0.0
    assert record.top1_agreement == 1.0
    assert record.size_bytes == sum(file.stat().st_size for file in path.iterdir())
    assert sorted(file.name for file in path.iterdir()) == ["model.py", "model.safetensors"]


def test_the_export_ends_in_the_activation(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder)
    interface = replace(model.interface, activation="softmax")
    save_model(folder, model.program, {}, interface)
    network = nn.Sequential(model.network, nn.Softmax(-1)).eval()
    source = Exportable(network, interface, torch.randn(8, 3, 8, 8), folder)

    assert export_model("python", source, tmp_path / "out_py").max_abs_diff == 0.0


def test_the_weights_are_those_of_the_model_folder(folder: Path, tmp_path: Path) -> None:
    write_python(folder, tmp_path / "out_py")
    state = open_python(tmp_path / "out_py").state_dict()

    program = load_model(folder).program
    assert all(torch.equal(state[name], value) for name, value in program.tensors.items())


def test_code_that_computes_something_else_is_deleted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fitcompress.exporters.python import standalone

    write = standalone.write_source

    def wrong(program, interface):
        source = write(program, interface)
        return replace(source, text=source.text.replace(" + x", " - x"))

    monkeypatch.setattr(standalone, "write_source", wrong)
    with pytest.raises(ExportError) as caught:
        export_model("python", exportable_of(folder), tmp_path / "out_py")
    assert caught.value.code == "export-mismatch"
    assert not (tmp_path / "out_py").exists()


def test_a_network_without_a_model_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    source = replace(exportable_of(folder), folder=None)
    with pytest.raises(ExportError) as caught:
        export_model("python", source, tmp_path / "out_py")
    assert caught.value.code == "export-without-folder"
    assert caught.value.facts == {"format": "python"}


def test_an_older_export_is_replaced_only_with_force(folder: Path, tmp_path: Path) -> None:
    export_model("python", exportable_of(folder), tmp_path / "out_py")
    with pytest.raises(ExportError) as caught:
        export_model("python", exportable_of(folder), tmp_path / "out_py")
    assert caught.value.code == "export-exists"
    export_model("python", exportable_of(folder), tmp_path / "out_py", force=True)
