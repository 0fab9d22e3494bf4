"""ONNX files in int8: weights per channel, activations by what training images make of them, and
layers left in float where int8 costs accuracy. Layer: `onnxwrite`, onnxruntime's quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fitcompress.errors import ExportError
from fitcompress.exporters.artifact import Exportable
from fitcompress.exporters.onnx_session import OnnxNetwork, open_onnx
from fitcompress.exporters.onnx_writer import write_onnx

__all__ = ["write_int8"]

_MOST_LOST = 0.005
"""The accuracy that int8 may cost."""
_QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators that hold a layer's weights."""
_FEW_BATCHES = 2
"""Of the calibration images, for ranking the layers."""

_Array = np.ndarray[Any, Any]


def write_int8(source: Exportable, path: Path) -> str:
    """The network with int8 weights and activations; says which layers stayed in float.

    Where int8 loses more than half a point of `source.score`, layers are left in float, first those
    that alone, in int8, change the outputs most.

    Raises:
        ExportError: the source has no images to calibrate with, or no layers are left to quantize.
    """
    if source.calibration is None or source.score is None:
        raise ExportError("exporting int8: it needs images, to calibrate and to judge with")
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        write_onnx(source, plain)
        prepared = _prepared(plain)
        batches = [batch.numpy() for batch in source.calibration()]
        before = source.score(open_onnx(plain))
        layers = _layers(prepared)
        ranked: Sequence[str] = ()
        for num_float in _counts(len(layers)):
            if num_float and not ranked:
                ranked = _most_sensitive_first(prepared, layers, batches[:_FEW_BATCHES])
            _quantize(prepared, path, batches, exclude=ranked[:num_float])
            lost = before - source.score(open_onnx(path, source.interface))
            if lost <= _MOST_LOST:
                return f"{num_float} of {len(layers)} layers in float" if num_float else ""
    raise ExportError(
        f"exporting int8: {lost:.1%} of accuracy is lost with {num_float} of {len(layers)} layers"
        " in float",
        advice="use --onnx or --fp16",
    )


def _counts(num_layers: int) -> Iterator[int]:
    """How many layers to leave in float: none, a sixteenth, and so on, up to half."""
    yield 0
    count = max(1, num_layers // 16)
    while count <= num_layers // 2:
        yield count
        count *= 2


def _prepared(path: Path) -> Path:
    """The file with shapes inferred and batch norms folded, as the quantizer wants it."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = path.with_name("prepared.onnx")
    quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
    return prepared


def _layers(path: Path) -> list[str]:
    import onnx

    nodes = onnx.load(path).graph.node
    return [node.name for node in nodes if node.op_type in _QUANTIZED]


def _most_sensitive_first(
    path: Path, layers: Sequence[str], batches: Sequence[_Array]
) -> list[str]:
    """The layers by how much each, alone in int8, changes what the network says."""
    expected = output_list(open_onnx(path), batches)
    changes = {}
    with TemporaryDirectory() as folder:
        for layer in layers:
            draft = Path(folder) / "one.onnx"
            _quantize(path, draft, batches, only=[layer])
            changes[layer] = float(
                ((output_list(open_onnx(draft), batches) - expected) ** 2).mean()
            )
    return sorted(layers, key=changes.__getitem__, reverse=True)


def output_list(network: OnnxNetwork, batches: Sequence[_Array]) -> _Array:
    return np.concatenate([network.run(batch)[0] for batch in batches])


def _quantize(
    prepared: Path,
    path: Path,
    batches: Sequence[_Array],
    *,
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(batches)

        def get_next(self) -> dict[str, _Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    name = onnx.load(prepared, load_external_data=False).graph.input[0].name
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        per_channel=True,
        reduce_range=True,  # else sums of int8 products overflow on processors without VNNI
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=list(only),
        nodes_to_exclude=list(exclude),
    )
