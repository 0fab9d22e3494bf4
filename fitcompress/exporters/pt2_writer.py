"""`torch.export` programs (`.pt2`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fitcompress.exporters.exportable import Exportable

__all__ = ["open_pt2", "write_pt2"]


def write_pt2(exportable: Exportable, path: Path) -> None:
    """Writes a program for any batch size; the file is not checked."""
    program = torch.export.export(
        exportable.network, exportable.rows(2), dynamic_shapes=exportable.dynamic_shapes
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # holds paths of the machine
    program.example_inputs = None  # the user's images
    torch.export.save(program, path, extra_files=exportable.metadata())


def open_pt2(path: Path) -> Callable[..., Any]:
    return torch.export.load(path).module()
