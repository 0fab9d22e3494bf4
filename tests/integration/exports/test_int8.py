"""float16 and int8 files, and files with their preprocessing inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.exportables import INTERFACE, tiny_exportable
from torch import nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.errors import ExportError
from fitcompress.exporters import int8
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.formats import export_model
from fitcompress.exporters.onnx_session import open_onnx

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def judged(exportable: Exportable, score=None) -> Exportable:
    """The exportable with random calibration images, scored by agreement with itself."""
    with torch.no_grad():
        expected = exportable.network.eval()(X).argmax(1)

    def agreement(network: nn.Module) -> float:
        return float((network(X).argmax(1) == expected).float().mean())

    return replace(exportable, calibration=lambda: X.split(16), score=score or agreement)


def deep_exportable(num: int = 10) -> Exportable:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(num)]
    return tiny_exportable(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        )
    )


def weight_types(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [onnx.TensorProto.DataType.Name(value.data_type) for value in graph.initializer]


def test_float16_halves_the_weights_and_keeps_the_outputs(tmp_path):
    exportable = tiny_exportable()
    record = export_model("onnx-fp16", exportable, tmp_path / "half.onnx")
    assert 0 < record.max_rel_diff < 0.01
    assert {"FLOAT16"} <= set(weight_types(tmp_path / "half.onnx")) and "FLOAT" not in weight_types(
        tmp_path / "half.onnx"
    )
    network = open_onnx(tmp_path / "half.onnx")
    assert network.interface == INTERFACE
    assert network(X).dtype == torch.float32


def test_int8_weights_are_per_channel_and_outputs_are_near(tmp_path):
    exportable = judged(tiny_exportable())
    record = export_model("onnx-int8", exportable, tmp_path / "small.onnx")
    assert record.remark == "" and 1e-5 < record.max_rel_diff < 0.2
    model = onnx.load(tmp_path / "small.onnx")
    tensors = {value.name: value for value in model.graph.initializer}
    quantized = {name for name, v in tensors.items() if v.data_type == onnx.TensorProto.INT8}
    found = {name.removesuffix("_quantized") for name in quantized if name.endswith("_quantized")}
    assert len(found) == 2  # the convolution, with its batch norm inside, and the linear map
    scales = {name: tuple(tensors[f"{name}_scale"].dims) for name in found}
    assert scales == {name: (6,) if "0." in name else (3,) for name in found}
    assert open_onnx(tmp_path / "small.onnx").interface == INTERFACE
    with torch.no_grad():
        difference = open_onnx(tmp_path / "small.onnx")(X) - exportable.network.eval()(X)
    assert difference.abs().max() < 0.2


def test_sensitive_layers_stay_in_float_until_little_is_lost(tmp_path):
    """With a score that is high once enough layers are in float."""
    scores = []

    def score(network) -> float:
        nodes = onnx.load(network.session._model_path).graph.node
        num_dequantized = sum(node.op_type == "DequantizeLinear" for node in nodes)
        scores.append(num_dequantized)
        return 1.0 if num_dequantized == 0 or num_dequantized < max(scores) - 5 else 0.9

    exportable = judged(deep_exportable(), score)
    record = export_model("onnx-int8", exportable, tmp_path / "small.onnx")
    assert record.remark in ("2 of 12 layers in float", "1 of 12 layers in float")
    assert scores == [0, *sorted(scores[1:], reverse=True)]


def test_the_layer_that_int8_harms_most_is_the_first_to_stay(tmp_path):
    exportable = deep_exportable(4)
    exportable.network.eval()
    with torch.no_grad():  # a channel that is a thousand times the others leaves them few steps
        exportable.network[2][0].weight[:, 0] *= 1000
        exportable.network[2][0].weight[:, 1:] *= 0.01
    plain = tmp_path / "plain.onnx"
    int8.write_onnx(exportable, plain)
    prepared = int8._prepared(plain)
    layers = int8._layers(prepared)
    batches = [batch.numpy() for batch in X.split(16)]
    ranked = int8._most_sensitive_first(prepared, layers, batches)
    expected = {}
    for layer in layers:
        int8._quantize(prepared, tmp_path / "one.onnx", batches, only=[layer])
        change = open_onnx(tmp_path / "one.onnx", INTERFACE)(X) - open_onnx(plain)(X)
        expected[layer] = float(change.square().mean())
    assert ranked[0] == max(expected, key=expected.__getitem__)
    assert len(ranked) == 6


def test_int8_that_loses_too_much_is_refused(tmp_path):
    calls = []

    def score(network) -> float:
        calls.append(network)
        return 1.0 if len(calls) == 1 else 0.5

    with pytest.raises(ExportError) as caught:
        export_model("onnx-int8", judged(deep_exportable(4), score), tmp_path / "small.onnx")
    assert caught.value.code == "int8-accuracy-loss"
    facts = {"lost": 0.5, "allowed": 0.005, "layers_in_float": 2, "layers": 6}
    assert caught.value.facts == facts
    assert not (tmp_path / "small.onnx").exists()


def test_int8_without_images_is_refused(tmp_path):
    with pytest.raises(ExportError) as caught:
        export_model("onnx-int8", tiny_exportable(), tmp_path / "small.onnx")
    assert caught.value.code == "int8-without-images"


def test_preprocessing_inside_takes_pixels_and_gives_probabilities(tmp_path):
    exportable = tiny_exportable()
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    whole = nn.Sequential(Preprocess(INTERFACE.images), exportable.network, nn.Softmax(1)).eval()
    inside = replace(exportable, network=whole, samples=pixels)
    given = replace(exportable, with_preprocessing=lambda: inside)
    export_model("onnx-pixels", given, tmp_path / "pixels.onnx")
    network = open_onnx(tmp_path / "pixels.onnx")
    assert network.takes_pixels and network.interface == INTERFACE
    found = network(pixels)
    with torch.no_grad():
        values = pixels.double() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
        expected = exportable.network.eval()(((values - mean) / std).float()).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "pixels.onnx").metadata_props}
    assert "uint8" in metadata["preprocessing"]


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_the_requested_one(opset, tmp_path):
    export_model("onnx", replace(tiny_exportable(), opset=opset), tmp_path / "x.onnx")
    domains = {entry.domain: entry.version for entry in onnx.load(tmp_path / "x.onnx").opset_import}
    assert domains[""] == opset
