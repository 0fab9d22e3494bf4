"""ONNX files as networks, for checks, evaluation and timing.

The metadata of a file says which images it takes, however it was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fitcompress.errors import ExportError
from fitcompress.evaluation.benchmark import Runner
from fitcompress.formatting import first_line
from fitcompress.interface import Interface, interface_from_metadata

__all__ = ["OnnxNetwork", "onnx_runner", "open_onnx"]


class OnnxNetwork(nn.Module):
    """An ONNX file on the CPU, called like a network.

    Takes what the network took: normalized float32 images (N, C, H, W), uint8 images if the file
    includes its preprocessing, or other tensors.
    """

    def __init__(self, session: Any, interface: Interface) -> None:
        super().__init__()
        self.session = session
        self.interface = interface

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes uint8 images, because it includes its preprocessing."""
        return bool(self.session.get_inputs()[0].type == "tensor(uint8)")

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch; a tuple if the file has several."""
        arrays = self.run(*(value.cpu().numpy() for value in inputs))
        outputs = tuple(torch.from_numpy(array) for array in arrays)
        return outputs[0] if len(outputs) == 1 else outputs

    def run(self, *inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
        """The same on NumPy arrays."""
        names = [entry.name for entry in self.session.get_inputs()]
        outputs: list[np.ndarray[Any, Any]] = self.session.run(
            None, dict(zip(names, inputs, strict=True))
        )
        return outputs


def open_onnx(path: Path, interface: Interface | None = None) -> OnnxNetwork:
    """Opens the ONNX file at `path`, with as many threads as torch uses.

    interface: describes the inputs; None reads it from the file's metadata.

    Raises:
        ExportError: the file cannot be opened, or does not say which images it takes.
    """
    session = _open_session(Path(path))
    if interface is None:
        interface = _interface_of(session, path)
    return OnnxNetwork(session, interface)


def onnx_runner(path: Path) -> Runner:
    """Times the file in ONNX Runtime, without conversions from and to torch tensors."""
    network = open_onnx(path)
    shape = network.interface.images.shape

    def make_input(batch_size: int) -> np.ndarray[Any, Any]:
        if network.takes_pixels:
            return np.zeros((batch_size, *shape), dtype=np.uint8)
        return np.random.default_rng(0).standard_normal((batch_size, *shape), dtype=np.float32)

    return Runner(network.run, make_input)


def _open_session(path: Path) -> Any:
    import onnxruntime  # takes a third of a second, which other formats need not pay

    if not path.is_file():
        raise ExportError(
            f"opening '{path}': there is no such file", code="onnx-file-missing", path=str(path)
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that spin between calls occupy cores: networks timed in turns took twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors only; the rest is printed to the terminal
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ExportError(
            f"opening '{path}' with ONNX Runtime: {first_line(error)}",
            code="onnx-file-unreadable",
            advice="The file is damaged, or uses operators that this onnxruntime lacks.",
            path=str(path),
        ) from error


def _interface_of(session: Any, path: Path) -> Interface:
    entries: dict[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        return interface_from_metadata(entries)
    except (KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"opening '{path}': its metadata does not describe its inputs and outputs (entry"
            f" {error})",
            code="onnx-metadata-missing",
            advice="Use a file that `fitcompress export` wrote.",
            path=str(path),
        ) from error
