"""Export formats, and the export of a model.

Every export takes the same path: write into a temporary folder, open the file, run it on real
inputs at two batch sizes, compare the outputs with the network's, and only then move it into place.
A file that does not match never gets its name.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fitcompress.atomic import disk_errors
from fitcompress.errors import ExportError, FitcompressError, near_misses
from fitcompress.exporters.check import CHECKED_BATCHES, TOLERANCE, Difference, check_outputs
from fitcompress.exporters.converters import converter_errors, quiet
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.int8 import write_int8
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.exporters.onnx_writer import write_float16, write_onnx
from fitcompress.exporters.pt2_writer import open_pt2, write_pt2
from fitcompress.exporters.python.standalone import open_python, write_python
from fitcompress.exporters.torchscript_writer import open_torchscript, write_torchscript
from fitcompress.interface import Interface
from fitcompress.models.model import CONFIG_NAME, WEIGHTS_NAME, load_model
from fitcompress.modes import evaluating
from fitcompress.records.export_record import ExportRecord

__all__ = ["FORMATS", "Format", "export_model"]


@dataclass(frozen=True)
class Format:
    """How files of a format are written and opened."""

    suffix: str
    write: Callable[[Exportable, Path], str | None]
    """May return a remark for the record."""
    open: Callable[[Path, Interface], Callable[..., Any]]
    """Returns what runs the file."""
    tolerance: float = TOLERANCE
    view: Callable[[Exportable], Exportable] = lambda exportable: exportable
    """Returns what is written in place of the exportable itself."""


def export_model(
    format_name: str, exportable: Exportable, path: Path, *, force: bool = False
) -> ExportRecord:
    """Writes `exportable` to `path`, and checks the file against the network.

    format_name: a key of `FORMATS`.

    Raises:
        ExportError: `path` exists and `force` is off; the format cannot hold the network; the file
            does not match.
    """
    if format_name not in FORMATS:
        raise ExportError(
            f"choosing the format: there is no format '{format_name}'",
            code="format-unknown",
            advice=near_misses(format_name, FORMATS) or f"Choose from {', '.join(FORMATS)}.",
            format=format_name,
            known=list(FORMATS),
        )
    path = Path(path)
    if path.exists() and not force:
        raise ExportError(
            f"exporting {format_name} to '{path}': the file exists",
            code="export-exists",
            advice="Replace it with --force.",
            format=format_name,
            path=str(path),
        )
    started = time.perf_counter()
    exportable = FORMATS[format_name].view(exportable).on_cpu()
    with disk_errors("exporting to", path), quiet(), evaluating(exportable.network):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
            found, remark = _write_and_check(format_name, exportable, Path(folder) / path.name)
            files = [file for file in Path(folder).rglob("*") if file.is_file()]
            size_bytes = sum(file.stat().st_size for file in files)
            _move_all(Path(folder), path.parent)
    return ExportRecord(
        format=format_name,
        path=str(path),
        size_bytes=size_bytes,
        checked_batches=CHECKED_BATCHES,
        max_abs_diff=found.max_abs,
        max_rel_diff=found.max_rel,
        top1_agreement=found.top1_agreement,
        seconds=time.perf_counter() - started,
        remark=remark,
        accuracy=None,
    )


def _write_and_check(
    format_name: str, exportable: Exportable, draft: Path
) -> tuple[Difference, str]:
    kind = FORMATS[format_name]
    passed = (FitcompressError, OSError)
    with converter_errors(f"exporting {format_name}", format_name, passed=passed):
        remark = kind.write(exportable, draft) or ""
    with converter_errors(f"running the exported {format_name} file", format_name):
        run = kind.open(draft, exportable.interface)
        return check_outputs(format_name, exportable, run, kind.tolerance), remark


def _move_all(folder: Path, target: Path) -> None:
    """Moves the content of `folder` to `target`, side files first, replacing existing files."""
    for entry in sorted(folder.iterdir(), key=lambda entry: len(entry.name), reverse=True):
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)


def _with_preprocessing(exportable: Exportable) -> Exportable:
    if exportable.with_preprocessing is None:
        raise ExportError(
            "exporting with preprocessing: the network takes no images",
            code="network-without-images",
        )
    return exportable.with_preprocessing()


def _model_folder(exportable: Exportable, format_name: str) -> Path:
    if exportable.folder is None:
        raise ExportError(
            f"exporting {format_name}: expected a model loaded from its folder, got one that is"
            " only in memory",
            code="export-without-folder",
            format=format_name,
        )
    return exportable.folder


def _copy_folder(exportable: Exportable, path: Path) -> None:
    folder = _model_folder(exportable, "safetensors")
    path.mkdir()
    for name in (WEIGHTS_NAME, CONFIG_NAME):
        shutil.copyfile(folder / name, path / name)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", write_onnx, open_onnx),
    "onnx-fp16": Format(".fp16.onnx", write_float16, open_onnx, tolerance=0.03),
    "onnx-int8": Format(".int8.onnx", write_int8, open_onnx, tolerance=inf),
    "onnx-pixels": Format(".pixels.onnx", write_onnx, open_onnx, view=_with_preprocessing),
    "torchscript": Format(
        ".torchscript.pt", write_torchscript, lambda path, _: open_torchscript(path)
    ),
    "pt2": Format(".pt2", write_pt2, lambda path, _: open_pt2(path)),
    "safetensors": Format("", _copy_folder, lambda path, _: load_model(path).network),
    "python": Format(
        "_py",
        lambda exportable, path: write_python(_model_folder(exportable, "python"), path),
        lambda path, _: open_python(path),
    ),
}
"""Every format by its name on the command line."""
