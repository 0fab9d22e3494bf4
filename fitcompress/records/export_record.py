"""An entry of `exports.json`."""

from __future__ import annotations

from dataclasses import dataclass

from fitcompress.records.json_record import Record
from fitcompress.records.measurements import Share, Timing

__all__ = ["ExportRecord"]


@dataclass(frozen=True, kw_only=True)
class ExportRecord(Record):
    """An exported file and how it compares with the network."""

    format: str
    path: str
    size_bytes: int
    checked_batches: tuple[int, ...]
    max_abs_diff: float
    """Largest difference from the network's outputs over all checked samples."""
    max_rel_diff: float
    """The same, relative to the largest output."""
    top1_agreement: float
    """Share of checked samples with the same largest output."""
    seconds: float
    """Time to write and check the file."""
    remark: str = ""
    """A note on how the file was made, such as the layers that stay in float."""
    accuracy: Share | None
    """On the evaluation split; None without labels or before it is measured."""
    latency: dict[str, Timing] | None = None
    """In ONNX Runtime, by batch size, against the network in float32; without samples."""
