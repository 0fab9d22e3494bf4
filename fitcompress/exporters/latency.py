"""Latency of models in PyTorch and ONNX Runtime, and their peak memory."""

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
from fitcompress.exporters.converters import converter_errors, quiet
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.onnx_session import onnx_runner
from fitcompress.exporters.onnx_writer import write_onnx
from fitcompress.interface import Interface
from fitcompress.models.model import Model
from fitcompress.modes import evaluating
from fitcompress.records.measurements import Timing

__all__ = ["BATCH_SIZES", "file_latency", "latencies", "onnx_copy", "peak_memory"]

BATCH_SIZES = (1, 32)


def latencies(
    models: Mapping[str, Model], device: str, emit: Emit, *, in_onnx: bool = True
) -> dict[str, dict[str, dict[str, Timing]]]:
    """Times one call of each model, by model, runtime ("torch", "onnxruntime") and batch size.

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
                message = f"the {name}'s latency in ONNX Runtime is unknown: {error}"
                emit(Notice(topic="evidence", message=message, code="onnx-latency-unknown"))
        for name, times in (paired_latency(runners) if runners else {}).items():
            measured[name]["onnxruntime"] = times
    return measured


def file_latency(path: Path, model: Model) -> dict[str, Timing]:
    """Times an ONNX file of the model by batch size, in turns with the model in float32, to which
    its speedup is relative.

    Raises:
        ExportError: as `onnx_copy`.
    """
    with onnx_copy(model.network, model.interface) as plain:
        times = paired_latency({"float32": plain, "file": onnx_runner(path)}, BATCH_SIZES)["file"]
    return {batch: replace(own, samples_ms=None) for batch, own in times.items()}  # never drawn


@contextmanager
def onnx_copy(network: nn.Module, interface: Interface) -> Iterator[Runner]:
    """Yields a runner of the network in ONNX Runtime on the CPU; its file is temporary.

    Raises:
        ExportError: the network cannot be written as ONNX, or does not run at every batch size.
    """
    with TemporaryDirectory(prefix="fitcompress-") as folder:
        path = Path(folder) / "network.onnx"
        with converter_errors("exporting onnx", "onnx"):
            samples = torch.zeros(2, *interface.images.shape)
            exportable = Exportable(network, interface, samples).on_cpu()
            with quiet(), evaluating(exportable.network):
                write_onnx(exportable, path)
            runner = onnx_runner(path)
            for size in BATCH_SIZES:
                runner.run(runner.make_input(size))
        yield runner


def peak_memory(model: Model, device: str) -> dict[str, int]:
    """Bytes of the weights and of the most activations alive at once, by batch size."""
    make_input = torch_runner(model.network, model.interface.images.shape, device).make_input
    return {str(size): peak_memory_bytes(model.network, make_input(size)) for size in BATCH_SIZES}
