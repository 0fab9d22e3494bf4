"""Files that others can run, each compared with the student before it gets its name.

Layer: torch, `measure`, `onnxfile`. One road for all formats: write into a temporary folder, open
what was written, run it on real inputs at two batch sizes, compare with the network, and only then
move it to its place. A file that does not match never gets a name.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from fitcompress.atomic import disk_errors
from fitcompress.errors import ExportError, FitcompressError, near_misses
from fitcompress.exporters.artifact import Exportable, on_cpu, output_list, quiet
from fitcompress.exporters.int8 import write_int8
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.exporters.onnx_writer import from_pixels, write_float16, write_onnx
from fitcompress.exporters.pt2_writer import open_pt2, write_pt2
from fitcompress.exporters.python.standalone import open_python, write_python
from fitcompress.exporters.torchscript_writer import open_torchscript, write_torchscript
from fitcompress.formatting import first_line
from fitcompress.interface import Interface
from fitcompress.models.model import load_model
from fitcompress.modes import evaluating
from fitcompress.records.export_record import ExportRecord

__all__ = ["FORMATS", "Format", "export_model"]

_CHECKED_BATCHES = (1, 8)


_TOLERANCE = 1e-3
"""Largest difference allowed, as a share of the largest output.

Float32 sums in another order and folded batch norms move deep networks by up to some 1e-5 of it; a
wrong graph moves them by 1e-1 and more. A network that float32 itself moves further is allowed that
much."""


@dataclass(frozen=True)
class Format:
    """How a kind of file is written and run."""

    suffix: str
    write: Callable[[Exportable, Path], str | None]
    """May say what is special about the file."""
    open: Callable[[Path, Interface], Callable[..., Any]]
    tolerance: float = _TOLERANCE
    view: Callable[[Exportable], Exportable] = lambda source: source
    """What of the source is written."""


def export_model(form: str, source: Exportable, path: Path, *, force: bool = False) -> ExportRecord:
    """Write `source` as `form` (a key of `FORMATS`) to `path`, checked against the network.

    Raises:
        ExportError: `path` is taken and `force` is off; the network cannot be written so; the file
            does not match.
    """
    if form not in FORMATS:
        known = near_misses(form, FORMATS) or f"known are {', '.join(FORMATS)}"
        raise ExportError(f"exporting: there is no format {form!r}; {known}")
    path = Path(path)
    if path.exists() and not force:
        raise ExportError(
            f"exporting {form} to {str(path)!r}: there is a file already",
            advice="replace it with --force",
        )
    started = time.perf_counter()
    source = on_cpu(FORMATS[form].view(source))
    with disk_errors("exporting to", path), quiet(), evaluating(source.network):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as folder:
            draft = Path(folder) / path.name
            differences, remark = _write_and_check(form, source, draft)
            size_bytes = sum(
                file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()
            )
            _move_all(Path(folder), path.parent)
    max_abs, max_rel, agreement = differences
    return ExportRecord(
        format=form,
        path=str(path),
        size_bytes=size_bytes,
        checked_batches=_CHECKED_BATCHES,
        max_abs_diff=max_abs,
        max_rel_diff=max_rel,
        top1_agreement=agreement,
        seconds=time.perf_counter() - started,
        remark=remark,
        accuracy=None,
    )


def _write_and_check(
    form: str, source: Exportable, draft: Path
) -> tuple[tuple[float, float, float], str]:
    kind = FORMATS[form]
    try:
        remark = kind.write(source, draft) or ""
    except (FitcompressError, OSError):
        raise
    except Exception as error:  # converters raise whatever their insides raise
        raise ExportError(
            f"exporting {form}: the converter failed: {first_line(error, with_type=True)}"
        ) from error
    try:
        run = kind.open(draft, source.interface)
        differences = _compare(source, run)
    except FitcompressError:
        raise
    except Exception as error:
        raise ExportError(
            f"checking the {form} file: running it failed: {first_line(error, with_type=True)}"
        ) from error
    max_abs, max_rel, agreement = differences
    # "not", so that NaN is a mismatch too
    allowed = kind.tolerance
    if not max_rel <= allowed and not max_rel <= (allowed := max(allowed, _own_rounding(source))):
        raise ExportError(
            f"checking the {form} file: its outputs differ from the network's by {max_abs:.2g}, "
            f"{max_rel:.2g} of the largest output, where {allowed:.2g} is allowed "
            f"(top-1 agreement {agreement:.0%}); no file was left",
            advice="try another format; please report the model that does this",
        )
    return differences, remark


def _compare(source: Exportable, run: Callable[..., Any]) -> tuple[float, float, float]:
    """Largest difference, the same relative to the largest output, share of equal top-1."""
    max_abs = largest = 0.0
    same: list[Tensor] = []
    for batch_size in _CHECKED_BATCHES:
        inputs = source.rows(batch_size)
        with torch.no_grad():
            expected, got = output_list(source.network(*inputs)), output_list(run(*inputs))
        if [part.shape for part in expected] != [part.shape for part in got]:
            raise ExportError(
                f"checking the file: at batch {batch_size} its outputs have other shapes"
            )
        for one, other in zip(expected, got, strict=True):
            # torch's max, not Python's: it keeps a NaN.
            max_abs = float(torch.tensor([max_abs, float((one - other).abs().max())]).max())
            largest = max(largest, float(one.abs().max()))
        first = [side[0].reshape(batch_size, -1).argmax(1) for side in (expected, got)]
        same.append(first[0] == first[1])
    return max_abs, max_abs / max(largest, 1e-12), float(torch.cat(same).float().mean())


def _own_rounding(source: Exportable) -> float:
    """How far float32 moves the network's own outputs, as a share of the largest: a file cannot be
    nearer to them than they are to what float64 gives. 0 where it does not run in float64."""
    exact = copy.deepcopy(source.network).double()

    def in_float64(*inputs: Tensor) -> Any:
        return exact(*(x.double() if x.is_floating_point() else x for x in inputs))

    try:
        return _compare(source, in_float64)[1]
    except RuntimeError:
        return 0.0


def _model_folder(source: Exportable, form: str) -> Path:
    if source.folder is None:
        raise ExportError(f"exporting {form}: the network has no model folder")
    return source.folder


def _write_safetensors(source: Exportable, path: Path) -> None:
    folder = _model_folder(source, "safetensors")
    path.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(folder / name, path / name)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", write_onnx, open_onnx),
    "onnx-fp16": Format(".fp16.onnx", write_float16, open_onnx, tolerance=0.03),
    "onnx-int8": Format(".int8.onnx", write_int8, open_onnx, tolerance=inf),
    "onnx-pixels": Format(".pixels.onnx", write_onnx, open_onnx, view=from_pixels),
    "torchscript": Format(".torchscript.pt", write_torchscript, open_torchscript),
    "pt2": Format(".pt2", write_pt2, open_pt2),
    "safetensors": Format("", _write_safetensors, lambda path, _: load_model(path).network),
    "python": Format(
        "_py",
        lambda source, path: write_python(_model_folder(source, "python"), path),
        lambda path, _: open_python(path),
    ),
}
"""Every format by its name on the command line."""


def _move_all(folder: Path, target: Path) -> None:
    """Move what is in `folder` to `target`, side files first, replacing what is there."""
    for entry in sorted(folder.iterdir(), key=lambda entry: len(entry.name), reverse=True):
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)
