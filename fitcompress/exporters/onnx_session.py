"""ONNX files as networks: for checks, for evaluation and for timing.

Layer: onnxruntime, torch and `spec`. Knows nothing of how the file was made: its own metadata says
what images it takes.
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
    """An ONNX file behind the call of a network, on the CPU.

    Takes what the network took: normalised float32 images (N, C, H, W), or uint8 ones where its
    preprocessing is inside, or tensors as they are.
    """

    def __init__(self, session: Any, interface: Interface) -> None:
        super().__init__()
        self.session = session
        self.interface = interface

    @property
    def takes_pixels(self) -> bool:
        """Whether it takes uint8 images: its preprocessing is inside."""
        return bool(self.session.get_inputs()[0].type == "tensor(uint8)")

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """The outputs for a batch; a tuple where the file has several."""
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
    """The ONNX file at `path` as a network on as many threads as torch uses.

    `interface`: how it wants its images, for files that do not say so themselves.

    Raises:
        ExportError: the file cannot be opened, or nobody says what images it takes.
    """
    session = _open_session(Path(path))
    if interface is None:
        interface = _interface_of(session, str(path))
    return OnnxNetwork(session, interface)


def onnx_runner(path: Path) -> Runner:
    """A runner that times the file in onnxruntime, without the way through torch tensors."""
    network = open_onnx(path)
    shape = network.interface.images.shape

    def make_input(batch_size: int) -> np.ndarray[Any, Any]:
        if network.takes_pixels:
            return np.zeros((batch_size, *shape), dtype=np.uint8)
        return np.random.default_rng(0).standard_normal((batch_size, *shape), dtype=np.float32)

    return Runner(network.run, make_input)


def _open_session(path: Path) -> Any:
    import onnxruntime  # takes a third of a second; only those who use ONNX pay

    if not path.is_file():
        raise ExportError(f"opening {str(path)!r}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between calls its threads would spin, on the cores that whoever is timed next needs: networks
    # that took turns were seen to take twice as long.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # errors; warnings would go straight to the terminal
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ExportError(
            f"opening {str(path)!r} with onnxruntime: {first_line(error)}",
            advice="the file is damaged, or uses operators that this onnxruntime lacks",
        ) from error


def _interface_of(session: Any, name: str) -> Interface:
    entries: dict[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        return interface_from_metadata(entries)
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"opening {name!r}: its metadata does not say what images it takes (entry {error})",
            advice="give --input-size, --mean and --std",
        ) from error
