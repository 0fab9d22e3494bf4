"""Checks that an exported file computes what the network computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fitcompress.errors import ExportError
from fitcompress.exporters.exportable import Exportable

__all__ = ["CHECKED_BATCHES", "TOLERANCE", "Difference", "check_outputs", "output_list"]

CHECKED_BATCHES = (1, 8)
TOLERANCE = 1e-3
"""Largest difference allowed, relative to the largest output.

Reordered float32 sums and folded batch norms move deep networks by up to about 1e-5 of it, a wrong
graph by 1e-1 and more. A network that float32 itself moves further is allowed that much."""


@dataclass(frozen=True)
class Difference:
    """How far outputs are from the network's, over all checked samples."""

    max_abs: float
    max_rel: float
    """Relative to the largest output."""
    top1_agreement: float
    """Share of samples with the same largest output."""


def check_outputs(
    format_name: str, exportable: Exportable, run: Callable[..., Any], tolerance: float
) -> Difference:
    """Compares a file with the network.

    run: takes the network's inputs, and returns what the file computes.
    tolerance: for `Difference.max_rel`.

    Raises:
        ExportError: outputs differ in shape, or by more than the tolerance.
    """
    found = _compare(format_name, exportable, run)
    # "not <=" and not ">": NaN is a mismatch too.
    if not found.max_rel <= tolerance:
        tolerance = max(tolerance, _rounding_error(format_name, exportable))
    if not found.max_rel <= tolerance:
        raise ExportError(
            f"checking the {format_name} file: expected outputs to differ from the student's by at"
            f" most {tolerance:.2g} of the largest output, got {found.max_rel:.2g}"
            f" ({found.max_abs:.2g} absolute, top-1 agreement {found.top1_agreement:.0%});"
            " the file was deleted",
            code="export-mismatch",
            advice="Try another format, and please report this model as an issue.",
            format=format_name,
            max_abs_diff=found.max_abs,
            max_rel_diff=found.max_rel,
            allowed=tolerance,
            top1_agreement=found.top1_agreement,
        )
    return found


def output_list(value: Any) -> list[Tensor]:
    """The outputs of a network with one or several, in float32."""
    parts = list(value) if isinstance(value, (tuple, list)) else [value]
    return [part.float() for part in parts]


def _compare(format_name: str, exportable: Exportable, run: Callable[..., Any]) -> Difference:
    max_abs = largest = 0.0
    same: list[Tensor] = []
    for batch_size in CHECKED_BATCHES:
        inputs = exportable.rows(batch_size)
        with torch.no_grad():
            expected, got = output_list(exportable.network(*inputs)), output_list(run(*inputs))
        shapes = [[list(part.shape) for part in side] for side in (expected, got)]
        if shapes[0] != shapes[1]:
            raise ExportError(
                f"checking the {format_name} file at batch size {batch_size}: expected outputs of"
                f" shapes {shapes[0]}, got {shapes[1]}",
                code="export-shape-mismatch",
                format=format_name,
                batch_size=batch_size,
                expected=shapes[0],
                got=shapes[1],
            )
        for one, other in zip(expected, got, strict=True):
            # torch's max, not Python's: it keeps a NaN.
            max_abs = float(torch.tensor([max_abs, float((one - other).abs().max())]).max())
            largest = max(largest, float(one.abs().max()))
        first = [side[0].reshape(batch_size, -1).argmax(1) for side in (expected, got)]
        same.append(first[0] == first[1])
    return Difference(max_abs, max_abs / max(largest, 1e-12), float(torch.cat(same).float().mean()))


def _rounding_error(format_name: str, exportable: Exportable) -> float:
    """How far float32 moves the network's own outputs, relative to the largest: no file can be
    expected to be closer. 0 if the network does not run in float64.
    """
    exact = copy.deepcopy(exportable.network).double()

    def in_float64(*inputs: Tensor) -> Any:
        return exact(*(x.double() if x.is_floating_point() else x for x in inputs))

    try:
        return _compare(format_name, exportable, in_float64).max_rel
    except RuntimeError:
        return 0.0
