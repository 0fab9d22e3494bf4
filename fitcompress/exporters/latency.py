"""What networks take where they are used: time in PyTorch and in onnxruntime, memory.

Layer: `speed`, `exports`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from fitcompress.errors import ExportError
from fitcompress.evaluation.benchmark import Runner, paired_latency, peak_memory_bytes, torch_runner
from fitcompress.events import Emit, Notice
from fitcompress.exporters.artifact import Exportable, on_cpu, quiet
from fitcompress.exporters.onnx_session import onnx_runner
from fitcompress.exporters.onnx_writer import write_onnx
from fitcompress.formatting import first_line
from fitcompress.interface import Interface
from fitcompress.models.model import Model
from fitcompress.modes import evaluating
from fitcompress.records.measurements import Timing

__all__ = ["BATCH_SIZES", "beside_float", "latencies", "onnx_copy", "peak_memory"]

BATCH_SIZES = (1, 32)


def latencies(
    models: Mapping[str, Model], device: str, emit: Emit, *, in_onnx: bool = True
) -> dict[str, dict[str, dict[str, Timing]]]:
    """By model and runtime ("torch", "onnxruntime") the time of one call of each batch size.

    The models take turns in each runtime, one runtime after the other. A model that cannot be
    exported is left out of onnxruntime, with a notice.
    """
    runners = {
        name: torch_runner(model.network, model.interface.images.shape, device)
        for name, model in models.items()
    }
    measured = {name: {"torch": times} for name, times in paired_latency(runners).items()}
    if not in_onnx:
        return measured
    with ExitStack() as stack:
        runners = {}
        for name, model in models.items():
            try:
                runners[name] = stack.enter_context(onnx_copy(model.network, model.interface))
            except ExportError as error:
                message = f"the {name}'s latency in onnxruntime is unknown: {error}"
                emit(Notice(topic="evidence", message=message))
        for name, times in (paired_latency(runners) if runners else {}).items():
            measured[name]["onnxruntime"] = times
    return measured


def beside_float(path: Path, model: Model) -> dict[str, Timing]:
    """By batch size the time of an ONNX file of the model in onnxruntime, as `paired_latency` gives
    it: in turns with the model in float32, which is what its speedup is over.

    Raises:
        ExportError: as `onnx_copy`.
    """
    with onnx_copy(model.network, model.interface) as plain:
        times = paired_latency({"float32": plain, "file": onnx_runner(path)}, BATCH_SIZES)["file"]
    return {batch: replace(own, samples_ms=None) for batch, own in times.items()}  # never drawn


@contextmanager
def onnx_copy(network: nn.Module, interface: Interface) -> Iterator[Runner]:
    """A runner of the network in onnxruntime on the CPU, of a file that is gone after the block.

    Raises:
        ExportError: it cannot be written as ONNX, or does not run at every batch size.
    """
    with TemporaryDirectory(prefix="fitcompress-") as folder:
        path = Path(folder) / "network.onnx"
        try:
            source = on_cpu(Exportable(network, interface, torch.zeros(2, *interface.images.shape)))
            with quiet(), evaluating(source.network):
                write_onnx(source, path)
            runner = onnx_runner(path)
            for size in BATCH_SIZES:
                runner.run(runner.make_input(size))
        except Exception as error:  # converters raise whatever their insides raise
            raise ExportError(f"exporting onnx: {first_line(error, with_type=True)}") from error
        yield runner


def peak_memory(model: Model, device: str) -> dict[str, int]:
    """Weights and the most activations alive at once, in bytes, by batch size."""
    make_input = torch_runner(model.network, model.interface.images.shape, device).make_input
    return {str(size): peak_memory_bytes(model.network, make_input(size)) for size in BATCH_SIZES}
