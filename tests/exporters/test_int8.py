"""float16 and int8 files, and files with their preprocessing inside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from helpers.exportables import INTERFACE, make_exportable
from torch import nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.errors import ExportError
from fitcompress.exporters import int8 as quantize
from fitcompress.exporters.artifact import Exportable
from fitcompress.exporters.formats import export_model
from fitcompress.exporters.onnx_session import open_onnx

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def judged(source: Exportable, score=None) -> Exportable:
    """The source with random images to calibrate, judged by how often it says what it said."""
    with torch.no_grad():
        expected = source.network.eval()(X).argmax(1)

    def agreement(network: nn.Module) -> float:
        return float((network(X).argmax(1) == expected).float().mean())

    return replace(source, calibration=lambda: X.split(16), score=score or agreement)


def deep_source(num: int = 10) -> Exportable:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()) for _ in range(num)]
    return make_exportable(
        nn.Sequential(
            nn.Conv2d(3, 6, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
        )
    )


def weight_types(path: Path) -> list[str]:
    graph = onnx.load(path).graph
    return [onnx.TensorProto.DataType.Name(value.data_type) for value in graph.initializer]


def test_float16_halves_the_weights_and_keeps_the_answers(tmp_path):
    source = make_exportable()
    record = export_model("onnx-fp16", source, tmp_path / "half.onnx")
    assert 0 < record.max_rel_diff < 0.01
    assert {"FLOAT16"} <= set(weight_types(tmp_path / "half.onnx")) and "FLOAT" not in weight_types(
        tmp_path / "half.onnx"
    )
    network = open_onnx(tmp_path / "half.onnx")
    assert network.interface == INTERFACE
    assert network(X).dtype == torch.float32


def test_int8_weights_are_per_channel_and_answers_are_near(tmp_path):
    source = judged(make_exportable())
    record = export_model("onnx-int8", source, tmp_path / "small.onnx")
    assert record.remark == "" and 1e-5 < record.max_rel_diff < 0.2
    model = onnx.load(tmp_path / "small.onnx")
    tensors = {value.name: value for value in model.graph.initializer}
    int8 = {name for name, value in tensors.items() if value.data_type == onnx.TensorProto.INT8}
    found = {name.removesuffix("_quantized") for name in int8 if name.endswith("_quantized")}
    assert len(found) == 2  # the convolution, with its batch norm inside, and the linear map
    scales = {name: tuple(tensors[f"{name}_scale"].dims) for name in found}
    assert scales == {name: (6,) if "0." in name else (3,) for name in found}
    assert open_onnx(tmp_path / "small.onnx").interface == INTERFACE
    with torch.no_grad():
        difference = open_onnx(tmp_path / "small.onnx")(X) - source.network.eval()(X)
    assert difference.abs().max() < 0.2


def test_sensitive_layers_stay_in_float_until_little_is_lost(tmp_path):
    """A judge that is content once enough layers are in float."""
    scores = []

    def score(network) -> float:
        nodes = onnx.load(network.session._model_path).graph.node
        num_dequantized = sum(node.op_type == "DequantizeLinear" for node in nodes)
        scores.append(num_dequantized)
        return 1.0 if num_dequantized == 0 or num_dequantized < max(scores) - 5 else 0.9

    source = judged(deep_source(), score)
    record = export_model("onnx-int8", source, tmp_path / "small.onnx")
    assert record.remark in ("2 of 12 layers in float", "1 of 12 layers in float")
    assert scores == [0, *sorted(scores[1:], reverse=True)]


def test_the_layer_that_int8_harms_most_is_the_first_to_stay(tmp_path):
    source = deep_source(4)
    source.network.eval()
    with torch.no_grad():  # a channel that is a thousand times the others leaves them few steps
        source.network[2][0].weight[:, 0] *= 1000
        source.network[2][0].weight[:, 1:] *= 0.01
    plain = tmp_path / "plain.onnx"
    quantize.write_onnx(source, plain)
    prepared = quantize._prepared(plain)
    layers = quantize._layers(prepared)
    batches = [batch.numpy() for batch in X.split(16)]
    ranked = quantize._most_sensitive_first(prepared, layers, batches)
    expected = {}
    for layer in layers:
        quantize._quantize(prepared, tmp_path / "one.onnx", batches, only=[layer])
        change = open_onnx(tmp_path / "one.onnx", INTERFACE)(X) - open_onnx(plain)(X)
        expected[layer] = float(change.square().mean())
    assert ranked[0] == max(expected, key=expected.__getitem__)
    assert len(ranked) == 6


def test_int8_that_nothing_helps_is_refused(tmp_path):
    calls = []

    def score(network) -> float:
        calls.append(network)
        return 1.0 if len(calls) == 1 else 0.5

    with pytest.raises(ExportError, match=r"50.0% of accuracy is lost with \d+ of 6 layers"):
        export_model("onnx-int8", judged(deep_source(4), score), tmp_path / "small.onnx")
    assert not (tmp_path / "small.onnx").exists()


def test_int8_without_images_is_refused(tmp_path):
    with pytest.raises(ExportError, match="needs images"):
        export_model("onnx-int8", make_exportable(), tmp_path / "small.onnx")


def test_preprocessing_inside_takes_pixels_and_gives_probabilities(tmp_path):
    source = make_exportable()
    pixels = torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8)
    whole = nn.Sequential(Preprocess(INTERFACE.images), source.network, nn.Softmax(1)).eval()
    inside = replace(source, network=whole, samples=pixels)
    given = replace(source, with_pixels=lambda: inside)
    export_model("onnx-pixels", given, tmp_path / "pixels.onnx")
    network = open_onnx(tmp_path / "pixels.onnx")
    assert network.takes_pixels and network.interface == INTERFACE
    found = network(pixels)
    with torch.no_grad():
        values = pixels.double() / 255
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)))
        expected = source.network.eval()(((values - mean) / std).float()).softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    metadata = {e.key: e.value for e in onnx.load(tmp_path / "pixels.onnx").metadata_props}
    assert "uint8" in metadata["preprocessing"]


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_the_one_asked_for(opset, tmp_path):
    export_model("onnx", replace(make_exportable(), opset=opset), tmp_path / "x.onnx")
    domains = {entry.domain: entry.version for entry in onnx.load(tmp_path / "x.onnx").opset_import}
    assert domains[""] == opset
