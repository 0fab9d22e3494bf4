"""ONNX files in int8.

Weights are quantized per channel, activations to the ranges that they have on training images.
Layers in which int8 costs too much accuracy stay in float.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fitcompress.errors import ExportError
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.onnx_session import OnnxNetwork, open_onnx
from fitcompress.exporters.onnx_writer import write_onnx

__all__ = ["write_int8"]

_MAX_LOSS = 0.005
"""Of accuracy, that int8 may cost."""
_QUANTIZED = ("Conv", "Gemm", "MatMul")
"""Operators with the weights of layers."""
_NUM_RANKING_BATCHES = 2
"""Calibration batches on which layers are ranked."""

_Array = np.ndarray[Any, Any]


def write_int8(exportable: Exportable, path: Path) -> str:
    """Writes the network with int8 weights and activations; returns a remark on layers that stay in
    float.

    As long as int8 costs more than half a point of `exportable.score`, more layers stay in float:
    first those which, quantized alone, change the outputs most.

    Raises:
        ExportError: there are no images to calibrate with, or too much accuracy is lost even with
            half of the layers in float.
    """
    if exportable.calibration is None or exportable.score is None:
        raise ExportError(
            "exporting onnx-int8: expected images for calibration, got none",
            code="int8-without-images",
        )
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        write_onnx(exportable, plain)
        prepared = _prepared(plain)
        batches = [batch.numpy() for batch in exportable.calibration()]
        before = exportable.score(open_onnx(plain))
        layers = _layers(prepared)
        ranked: Sequence[str] = ()
        for num_float in _counts(len(layers)):
            if num_float and not ranked:
                ranked = _most_sensitive_first(prepared, layers, batches[:_NUM_RANKING_BATCHES])
            _quantize(prepared, path, batches, exclude=ranked[:num_float])
            lost = before - exportable.score(open_onnx(path, exportable.interface))
            if lost <= _MAX_LOSS:
                return f"{num_float} of {len(layers)} layers in float" if num_float else ""
    raise ExportError(
        f"exporting onnx-int8: expected an accuracy loss of at most {_MAX_LOSS:.1%}, got {lost:.1%}"
        f" with {num_float} of {len(layers)} layers in float",
        code="int8-accuracy-loss",
        advice="Export with --onnx or --fp16 instead.",
        lost=lost,
        allowed=_MAX_LOSS,
        layers_in_float=num_float,
        layers=len(layers),
    )


def _counts(num_layers: int) -> Iterator[int]:
    """Numbers of layers to keep in float: none, a sixteenth, an eighth, up to half."""
    yield 0
    count = max(1, num_layers // 16)
    while count <= num_layers // 2:
        yield count
        count *= 2


def _prepared(path: Path) -> Path:
    """A copy with inferred shapes and folded batch norms, which the quantizer requires."""
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
    """The layers by how much each, quantized alone, changes the outputs."""
    expected = _outputs(open_onnx(path), batches)
    changes = {}
    with TemporaryDirectory() as folder:
        for layer in layers:
            draft = Path(folder) / "one.onnx"
            _quantize(path, draft, batches, only=[layer])
            difference = _outputs(open_onnx(draft), batches) - expected
            changes[layer] = float((difference**2).mean())
    return sorted(layers, key=changes.__getitem__, reverse=True)


def _outputs(network: OnnxNetwork, batches: Sequence[_Array]) -> _Array:
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
        reduce_range=True,  # sums of int8 products overflow on CPUs without VNNI
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=list(only),
        nodes_to_exclude=list(exclude),
    )
