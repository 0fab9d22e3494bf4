"""Exported files compute what the network computes, or do not exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.exportables import INTERFACE, tiny_exportable
from torch import Tensor, fx, nn

from fitcompress.errors import ExportError, RunError
from fitcompress.exporters import formats
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import FORMATS, Format, export_model
from fitcompress.exporters.onnx_session import open_onnx


class SizeReader(nn.Module):
    """Passes the batch size to a view, as captured transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, images: Tensor) -> Tensor:
        size = torch.ops.aten.sym_size.int(images, 0)
        maps = torch.ops.aten.view.default(images, [size, 3, 64])
        return self.head(torch.ops.aten.select.int(maps, 1, 0))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Adds a format whose file computes the given function of the right outputs."""

    def plant(exportable: Exportable, wrong: Callable[[Tensor], Tensor]) -> None:
        def write(_: Exportable, path: Path) -> None:
            path.write_bytes(b"x")
            Path(f"{path}.data").write_bytes(b"y")

        kind = Format(
            ".bin", write, lambda path, interface: lambda images: wrong(exportable.network(images))
        )
        monkeypatch.setattr(formats, "FORMATS", {**FORMATS, "planted": kind})

    return plant


@pytest.mark.integration
def test_onnx_computes_the_same_at_any_batch_size(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exportable = tiny_exportable()
    record = export_model("onnx", exportable, tmp_path / "out" / "student.onnx")
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert record.checked_batches == (1, 8)
    assert record.max_rel_diff < 1e-5
    assert record.top1_agreement == 1.0
    assert record.size_bytes == (tmp_path / "out" / "student.onnx").stat().st_size
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["student.onnx"]
    assert [module.training for module in exportable.network.modules()] == [True] * 8
    json.dumps(record.to_dict())

    network = open_onnx(tmp_path / "out" / "student.onnx")
    assert network.interface == INTERFACE
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = exportable.network.eval()(images)
    assert torch.allclose(network(images), expected, atol=1e-5)
    assert torch.equal(network(images), torch.from_numpy(network.run(images.numpy())[0]))

    model = onnx.load(tmp_path / "out" / "student.onnx")
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == [
        "images",
        "logits",
    ]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert not any(node.metadata_props for node in model.graph.node)


@pytest.mark.parametrize("form", ["torchscript", "pt2"])
@pytest.mark.parametrize(
    "make", [lambda: None, lambda: fx.symbolic_trace(SizeReader())], ids=["plain", "sizes"]
)
def test_torch_formats_compute_exactly_the_same(
    tmp_path: Path, form: str, make: Callable[[], nn.Module | None]
) -> None:
    record = export_model(
        form, tiny_exportable(make()), tmp_path / f"student{FORMATS[form].suffix}"
    )
    assert record.max_abs_diff == 0.0
    assert record.top1_agreement == 1.0


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(lambda y: y + 0.1, "export-mismatch", id="shifted"),
        pytest.param(lambda y: y * float("nan"), "export-mismatch", id="nan"),
        pytest.param(lambda y: y.flip(1), "export-mismatch", id="class order"),
        pytest.param(lambda y: y[:, :2], "export-shape-mismatch", id="shape"),
    ],
)
def test_a_mismatch_leaves_no_file(
    tmp_path: Path, planted: Callable[..., None], wrong: Callable[[Tensor], Tensor], code: str
) -> None:
    exportable = tiny_exportable()
    planted(exportable, wrong)
    with pytest.raises(ExportError) as caught:
        export_model("planted", exportable, tmp_path / "student.bin")
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


class Cancels(nn.Module):
    """Loses the last bits of what it is given: 3 becomes 4 in float32."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :2] + 2.0**25 - 2.0**25


@pytest.mark.parametrize("shift, is_allowed", [(0.9, True), (1.1, False)])
def test_a_file_may_be_as_far_off_as_float32_itself(
    tmp_path: Path, planted: Callable[..., None], shift: float, is_allowed: bool
) -> None:
    exportable = Exportable(Cancels(), INTERFACE, torch.full((2, 3, 8, 8), 3.0))
    assert torch.equal(exportable.network(exportable.inputs[0]), torch.full((2, 2), 4.0))
    planted(exportable, lambda y: y + shift)
    if is_allowed:
        assert export_model(
            "planted", exportable, tmp_path / "s.bin"
        ).max_abs_diff == pytest.approx(0.9)
        return
    with pytest.raises(ExportError) as caught:
        export_model("planted", exportable, tmp_path / "s.bin")
    assert caught.value.code == "export-mismatch"
    assert caught.value.facts["max_rel_diff"] == pytest.approx(1.1 / 4)
    assert caught.value.facts["allowed"] == pytest.approx(1 / 4)


def test_a_mismatch_keeps_the_older_file_even_with_force(
    tmp_path: Path, planted: Callable[..., None]
) -> None:
    exportable = tiny_exportable()
    planted(exportable, lambda y: -y)
    (tmp_path / "student.bin").write_text("older")
    with pytest.raises(ExportError) as caught:
        export_model("planted", exportable, tmp_path / "student.bin", force=True)
    assert caught.value.code == "export-mismatch"
    assert (tmp_path / "student.bin").read_text() == "older"


def test_side_files_move_with_the_file(tmp_path: Path, planted: Callable[..., None]) -> None:
    exportable = tiny_exportable()
    planted(exportable, lambda y: y)
    record = export_model("planted", exportable, tmp_path / "student.bin")
    assert record.size_bytes == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["student.bin", "student.bin.data"]


def test_a_taken_name_is_refused_without_force(
    tmp_path: Path, planted: Callable[..., None]
) -> None:
    exportable = tiny_exportable()
    planted(exportable, lambda y: y)
    (tmp_path / "student.bin").write_text("older")
    with pytest.raises(ExportError) as caught:
        export_model("planted", exportable, tmp_path / "student.bin")
    assert caught.value.code == "export-exists"
    assert caught.value.facts["path"] == str(tmp_path / "student.bin")
    assert "--force" in caught.value.advice
    export_model("planted", exportable, tmp_path / "student.bin", force=True)
    assert (tmp_path / "student.bin").read_bytes() == b"x"


def test_few_samples_are_repeated(tmp_path: Path, planted: Callable[..., None]) -> None:
    exportable = tiny_exportable(num_samples=1)
    planted(exportable, lambda y: y)
    assert export_model("planted", exportable, tmp_path / "student.bin").checked_batches == (1, 8)


def test_an_unknown_format_is_named_with_near_misses(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_model("onx", tiny_exportable(), tmp_path / "x")
    assert caught.value.code == "format-unknown"
    assert "'onnx'" in caught.value.advice


def test_a_converter_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(_: Exportable, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyError("inside\nof the converter")

    monkeypatch.setattr(formats, "FORMATS", {"x": replace(FORMATS["pt2"], write=write)})
    with pytest.raises(ExportError) as caught:
        export_model("x", tiny_exportable(), tmp_path / "student")
    assert caught.value.code == "converter-failed"
    assert "\n" not in str(caught.value) and "KeyError" in caught.value.facts["cause"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_run_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(_: Exportable, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(formats, "FORMATS", {"x": replace(FORMATS["pt2"], write=write)})
    with pytest.raises(RunError) as caught:
        export_model("x", tiny_exportable(), tmp_path / "student")
    assert caught.value.code == "disk-full"
    assert list(tmp_path.iterdir()) == []


def test_safetensors_without_a_model_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_model("safetensors", tiny_exportable(), tmp_path / "student")
    assert caught.value.code == "export-without-folder"


def test_preprocessing_inside_needs_a_network_that_takes_images(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_model("onnx-pixels", tiny_exportable(), tmp_path / "pixels.onnx")
    assert caught.value.code == "network-without-images"
