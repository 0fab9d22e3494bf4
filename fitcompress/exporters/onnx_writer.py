"""ONNX files in float32 and float16."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fitcompress.environment import package_version
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.onnx_decompositions import decomposed_for_onnx
from fitcompress.interface import Interface

__all__ = ["write_float16", "write_onnx"]

_PROTOBUF_LIMIT = 2**31 - 2**20
"""Maximum size of a single ONNX file; larger weights go into a file beside it."""
_OUTPUT_NAMES = {
    "softmax": "probabilities",
    "sigmoid": "probabilities",
    "log_softmax": "log_probabilities",
}
"""Name of a single output by the activation of the network."""


def write_onnx(exportable: Exportable, path: Path) -> None:
    """Writes the network for any batch size; the file is not checked."""
    import onnx

    with torch.no_grad():  # with gradients torch 2.15 picks attention kernels that it cannot export
        program = torch.onnx.export(
            decomposed_for_onnx(exportable.network),
            exportable.rows(2),  # a batch of one would be taken for a constant
            dynamo=True,
            dynamic_shapes=exportable.dynamic_shapes,
            input_names=_input_names(exportable.interface),
            opset_version=exportable.opset,
            verbose=False,
        )
    assert program is not None
    model = program.model
    model.producer_name = "fitcompress"
    model.producer_version = package_version("fitcompress")
    takes_pixels = exportable.inputs[0].dtype == torch.uint8
    model.metadata_props.update(exportable.metadata(takes_pixels=takes_pixels))
    model.graph.metadata_props.clear()
    for node in itertools.chain(model.graph, *model.functions.values()):
        node.metadata_props.clear()  # stack traces, which hold paths of the machine
    names = _output_names(model, exportable.interface)
    for value, name in zip(model.graph.outputs, names, strict=False):
        value.name = name
    program.save(str(path), external_data=_state_bytes(exportable.network) > _PROTOBUF_LIMIT)
    onnx.checker.check_model(str(path), full_check=True)


def write_float16(exportable: Exportable, path: Path) -> None:
    """The same with weights and arithmetic in float16; inputs and outputs stay float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    write_onnx(exportable, path)
    model = convert_float_to_float16(onnx.load(path), keep_io_types=True)
    onnx.save(model, path)


def _input_names(interface: Interface) -> list[str]:
    return ["images"] if interface.input else [spec.name for spec in interface.inputs]


def _output_names(model: Any, interface: Interface) -> tuple[str, ...]:
    """The names in the interface; a single output without one is named after its meaning."""
    if interface.output_names or len(model.graph.outputs) != 1:
        return interface.output_names
    if name := _OUTPUT_NAMES.get(interface.activation):
        return (name,)
    kind = interface.kind_of(list(model.graph.outputs[0].shape))
    return ("values" if kind == "values" else "logits",)


def _state_bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
