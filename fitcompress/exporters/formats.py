"""Files that others can run, each compared with the student before it gets its name.

Layer: torch, `measure`, `onnxfile`. One road for all formats: write into a temporary folder, open
what was written, run it on real inputs at two batch sizes, compare with the network, and only then
move it to its place. A file that does not match never gets a name.
"""

from __future__ import annotations

import copy
import io
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, fx, nn

from fitcompress.errors import ExportError, FitcompressError, near_misses
from fitcompress.evaluation.accuracy import evaluating
from fitcompress.metadata import metadata_of
from fitcompress.models.model import load_model
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.exporters.onnx_writer import Source, VERSION, batch_sizes, from_pixels, write_float16, write_onnx
from fitcompress.exporters.int8 import write_int8
from fitcompress.rundir import disk_errors
from fitcompress.exporters.python.folder import open_python, write_python
from fitcompress.interface import Interface

__all__ = [
    "FORMATS",
    "ExportRecord",
    "Format",
    "Source",
    "export_model",
    "on_cpu",
    "quiet",
    "write_onnx",
]

_CHECKED_BATCHES = (1, 8)
_TOLERANCE = 1e-3
"""Largest difference allowed, as a share of the largest output.

Float32 sums in another order and folded batch norms move deep networks by up to some 1e-5 of it; a
wrong graph moves them by 1e-1 and more. A network that float32 itself moves further is allowed that
much."""


@dataclass(frozen=True)
class ExportRecord:
    """A file that was written and how its check came out."""

    format: str
    path: str
    size_bytes: int
    checked_batches: tuple[int, ...]
    max_abs_diff: float
    """Largest difference to the network's outputs over all checked samples."""
    max_rel_diff: float
    """The same as a share of the largest output."""
    top1_agreement: float
    """Share of checked samples with the same largest output."""
    seconds: float
    remark: str = ""
    """What is special about the file."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**asdict(self), "checked_batches": list(self.checked_batches)}


@dataclass(frozen=True)
class Format:
    """How a kind of file is written and run."""

    suffix: str
    write: Callable[[Source, Path], str | None]
    """May say what is special about the file."""
    open: Callable[[Path, Interface], Callable[..., Any]]
    tolerance: float = _TOLERANCE
    view: Callable[[Source], Source] = lambda source: source
    """What of the source is written."""


def export_model(form: str, source: Source, path: Path, *, force: bool = False) -> ExportRecord:
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
    seconds = time.perf_counter() - started
    return ExportRecord(
        form, str(path), size_bytes, _CHECKED_BATCHES, *differences, seconds, remark
    )


def _write_and_check(
    form: str, source: Source, draft: Path
) -> tuple[tuple[float, float, float], str]:
    kind = FORMATS[form]
    try:
        remark = kind.write(source, draft) or ""
    except (FitcompressError, OSError):
        raise
    except Exception as error:  # converters raise whatever their insides raise
        raise ExportError(
            f"exporting {form}: the converter failed: {_first_line(error)}"
        ) from error
    try:
        run = kind.open(draft, source.interface)
        differences = _compare(source, run)
    except FitcompressError:
        raise
    except Exception as error:
        raise ExportError(
            f"checking the {form} file: running it failed: {_first_line(error)}"
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


def _compare(source: Source, run: Callable[..., Any]) -> tuple[float, float, float]:
    """Largest difference, the same relative to the largest output, share of equal top-1."""
    max_abs = largest = 0.0
    same: list[Tensor] = []
    for batch_size in _CHECKED_BATCHES:
        inputs = source.rows(batch_size)
        with torch.no_grad():
            expected, got = _outputs(source.network(*inputs)), _outputs(run(*inputs))
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


def _own_rounding(source: Source) -> float:
    """How far float32 moves the network's own outputs, as a share of the largest: a file cannot be
    nearer to them than they are to what float64 gives. 0 where it does not run in float64."""
    exact = copy.deepcopy(source.network).double()

    def in_float64(*inputs: Tensor) -> Any:
        return exact(*(x.double() if x.is_floating_point() else x for x in inputs))

    try:
        return _compare(source, in_float64)[1]
    except RuntimeError:
        return 0.0


def _outputs(value: Any) -> list[Tensor]:
    parts = list(value) if isinstance(value, (tuple, list)) else [value]
    return [part.float() for part in parts]


def _write_torchscript(source: Source, path: Path) -> None:
    """Traced where a trace holds at any batch size, else scripted from the graph."""
    with torch.no_grad():
        archive: Any = None
        if not _reads_sizes(source.network):
            archive = torch.jit.trace(source.network, source.rows(2), check_trace=False)
        if archive is None or not _runs_as(archive, source.network, source.rows(4)):
            archive = torch.jit.script(_scriptable(source.network)).eval()
    torch.jit.save(archive, str(path), _extra_files=metadata_of(source.interface, VERSION))


def _reads_sizes(network: nn.Module) -> bool:
    """Whether a graph in it asks for a size, which a trace would write down as a number."""
    graphs = [module.graph for module in network.modules() if isinstance(module, fx.GraphModule)]
    return any(n.target is torch.ops.aten.sym_size.int for graph in graphs for n in graph.nodes)


def _runs_as(archive: Callable[..., Any], network: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    expected = _outputs(network(*inputs))
    try:
        got = _outputs(archive(*inputs))
    except RuntimeError:  # a batch size baked into a view
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)
        for a, b in zip(expected, got, strict=True)
    )


def _scriptable(network: nn.Module) -> nn.Module:
    """A copy whose graphs name operators, and types of sizes, as TorchScript knows them."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                is_size = isinstance(node.meta.get("val"), (int, torch.SymInt))
                node.type = int if node.op == "placeholder" and is_size else None
                if isinstance(node.target, torch._ops.OpOverload):
                    packet = node.target.overloadpacket
                    node.target = (
                        torch.ops.aten.size if packet is torch.ops.aten.sym_size else packet
                    )
            module.recompile()
    return network


def _write_pt2(source: Source, path: Path) -> None:
    program = torch.export.export(
        source.network, source.rows(2), dynamic_shapes=batch_sizes(source)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of whoever exported
    program.example_inputs = None  # they are images of the user
    torch.export.save(program, path, extra_files=metadata_of(source.interface, VERSION))


def _model_folder(source: Source, form: str) -> Path:
    if source.folder is None:
        raise ExportError(f"exporting {form}: the network has no model folder")
    return source.folder


def _write_safetensors(source: Source, path: Path) -> None:
    folder = _model_folder(source, "safetensors")
    path.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copyfile(folder / name, path / name)


def _open_torchscript(path: Path, interface: Interface) -> Callable[..., Any]:
    del interface
    archive: Callable[..., Any] = torch.jit.load(str(path))
    return archive


def _open_pt2(path: Path, interface: Interface) -> Callable[..., Any]:
    del interface
    return torch.export.load(path).module()


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", write_onnx, open_onnx),
    "onnx-fp16": Format(".fp16.onnx", write_float16, open_onnx, tolerance=0.03),
    "onnx-int8": Format(".int8.onnx", write_int8, open_onnx, tolerance=inf),
    "onnx-pixels": Format(".pixels.onnx", write_onnx, open_onnx, view=from_pixels),
    "torchscript": Format(".torchscript.pt", _write_torchscript, _open_torchscript),
    "pt2": Format(".pt2", _write_pt2, _open_pt2),
    "safetensors": Format("", _write_safetensors, lambda path, _: load_model(path).network),
    "python": Format(
        "_py",
        lambda source, path: write_python(_model_folder(source, "python"), path),
        lambda path, _: open_python(path),
    ),
}
"""Every format by its name on the command line."""


def on_cpu(source: Source) -> Source:
    """The source on the CPU; a copy when it lies elsewhere."""
    network, tensors = source.network, [*source.network.parameters(), *source.network.buffers()]
    if any(tensor.device.type != "cpu" for tensor in tensors):
        network = copy.deepcopy(network).cpu()
    samples = tuple(values.detach().cpu() for values in source.inputs)
    return replace(source, network=network, samples=samples)


def _move_all(folder: Path, target: Path) -> None:
    """Move what is in `folder` to `target`, side files first, replacing what is there."""
    for entry in sorted(folder.iterdir(), key=lambda entry: len(entry.name), reverse=True):
        place = target / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """No output, warnings or log lines of converters inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
