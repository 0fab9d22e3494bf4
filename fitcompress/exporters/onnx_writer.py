"""Networks as ONNX files: in float32, in float16, and with their preprocessing inside.

Layer: torch, `onnxfile`.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fitcompress.environment import package_version
from fitcompress.errors import ExportError
from fitcompress.exporters.artifact import Exportable
from fitcompress.exporters.onnx_decompositions import in_plain_calls
from fitcompress.interface import Interface, interface_to_metadata

__all__ = ["VERSION", "batch_sizes", "from_pixels", "write_float16", "write_onnx"]

_PROTOBUF_LIMIT = 2**31 - 2**20
"""A single ONNX file cannot be larger; beyond it the weights lie beside it."""


VERSION = package_version("fitcompress") or "unknown"


def from_pixels(source: Exportable) -> Exportable:
    """The source with its preprocessing inside.

    Raises:
        ExportError: it takes no images.
    """
    if source.with_pixels is None:
        raise ExportError("exporting with preprocessing: the network takes no images")
    return source.with_pixels()


def batch_sizes(source: Exportable) -> tuple[dict[int, Any], ...]:
    return ({0: torch.export.Dim("batch")},) * len(source.rows(2))


def _input_names(interface: Interface) -> list[str]:
    return ["images"] if interface.input else [spec.name for spec in interface.inputs]


_OUTPUT_NAMES = {
    "softmax": "probabilities",
    "sigmoid": "probabilities",
    "log_softmax": "log_probabilities",
}
"""What an output is called, by the activation that the network ends in."""


def _output_names(model: Any, source: Exportable) -> tuple[str, ...]:
    """What the source calls them; a single nameless one is called by what it means."""
    if source.interface.output_names or len(model.graph.outputs) != 1:
        return source.interface.output_names
    if name := _OUTPUT_NAMES.get(source.interface.activation):
        return (name,)
    kind = source.interface.kind_of(list(model.graph.outputs[0].shape))
    return ("values" if kind == "values" else "logits",)


def write_onnx(source: Exportable, path: Path) -> None:
    """The network as an ONNX file, not compared with anything."""
    import onnx

    with torch.no_grad():  # with gradients torch 2.15 picks attention kernels that it cannot export
        program = torch.onnx.export(
            in_plain_calls(source.network),
            source.rows(2),  # a batch of one would be taken for a constant
            dynamo=True,
            dynamic_shapes=batch_sizes(source),
            input_names=_input_names(source.interface),
            opset_version=source.opset,
            verbose=False,
        )
    assert program is not None
    model = program.model
    model.producer_name = "fitcompress"
    model.producer_version = package_version("fitcompress")
    takes_pixels = source.inputs[0].dtype == torch.uint8
    model.metadata_props.update(
        interface_to_metadata(source.interface, VERSION, takes_pixels=takes_pixels)
    )
    model.graph.metadata_props.clear()
    for node in itertools.chain(model.graph, *model.functions.values()):
        node.metadata_props.clear()  # stack traces, with the paths of whoever exported
    for value, name in zip(model.graph.outputs, _output_names(model, source), strict=False):
        value.name = name
    program.save(str(path), external_data=_state_bytes(source.network) > _PROTOBUF_LIMIT)
    onnx.checker.check_model(str(path), full_check=True)


def write_float16(source: Exportable, path: Path) -> None:
    """The same with weights and sums in float16; inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    write_onnx(source, path)
    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    onnx.save(model, path)


def _state_bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
