"""`torch.export` programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fitcompress.exporters.artifact import Exportable
from fitcompress.exporters.onnx_writer import VERSION, batch_sizes
from fitcompress.interface import Interface, interface_to_metadata


def write_pt2(source: Exportable, path: Path) -> None:
    program = torch.export.export(
        source.network, source.rows(2), dynamic_shapes=batch_sizes(source)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of whoever exported
    program.example_inputs = None  # they are images of the user
    torch.export.save(program, path, extra_files=interface_to_metadata(source.interface, VERSION))


def open_pt2(path: Path, interface: Interface) -> Callable[..., Any]:
    del interface
    return torch.export.load(path).module()
