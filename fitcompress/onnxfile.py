"""ONNX files as networks: for checks, for evaluation and for timing.

Layer: onnxruntime, torch and `spec`. Knows nothing of how the file was made: its own metadata says
what images it takes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fitcompress.environment import package_version
from fitcompress.errors import ExportError
from fitcompress.spec import InputSpec, Interface, OutputKind, TensorSpec
from fitcompress.speed import Runner

__all__ = ["OnnxNetwork", "metadata_of", "onnx_runner", "open_onnx"]


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


def metadata_of(interface: Interface, *, takes_pixels: bool = False) -> dict[str, str]:
    """The interface as text entries for a file's metadata; `open_onnx` reads them back."""
    values: Mapping[str, object] = {
        **_metadata_of_inputs(interface, takes_pixels),
        "class_names": interface.class_names,
        "activation": interface.activation,
        "output_names": interface.output_names,
        "output_kind": interface.output_kind or "",
        "origin": interface.origin,
        "fitcompress_version": package_version("fitcompress") or "unknown",
    }
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}


def _metadata_of_inputs(interface: Interface, takes_pixels: bool) -> dict[str, object]:
    spec = interface.input
    if spec is None:
        return {"inputs": [asdict(item) for item in interface.inputs]}
    return {
        "input_shape": spec.shape,
        "mean": spec.mean,
        "std": spec.std,
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop_pct,
        "preprocessing": (
            "in the file: uint8 NCHW"
            if takes_pixels
            else "float32 NCHW, (pixel / 255 - mean) / std per channel"
        ),
    }


def _open_session(path: Path) -> Any:
    import onnxruntime  # takes a third of a second; only those who use ONNX pay

    if not path.is_file():
        raise ExportError(f"opening {str(path)!r}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors; warnings would go straight to the terminal
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise ExportError(
            f"opening {str(path)!r} with onnxruntime: {str(error).strip().splitlines()[0]}",
            advice="the file is damaged, or uses operators that this onnxruntime lacks",
        ) from error


def _interface_of(session: Any, name: str) -> Interface:
    entries: dict[str, str] = session.get_modelmeta().custom_metadata_map
    try:
        return _parsed_interface(entries)
    except (KeyError, ValueError) as error:
        raise ExportError(
            f"opening {name!r}: its metadata does not say what images it takes (entry {error})",
            advice="give --input-size, --mean and --std",
        ) from error


def _parsed_interface(entries: Mapping[str, str]) -> Interface:
    read: Callable[[str], Any] = lambda key: json.loads(entries[key])  # noqa: E731 - a local word
    tensors = read("inputs") if "inputs" in entries else ()
    return Interface(
        input=None if tensors else _parsed_images(entries),
        inputs=tuple(TensorSpec(**{**item, "shape": tuple(item["shape"])}) for item in tensors),
        class_names=tuple(read("class_names")),
        activation=entries["activation"],
        output_names=tuple(json.loads(entries.get("output_names", "[]"))),
        output_kind=cast(OutputKind, entries.get("output_kind")) or None,
        origin=read("origin"),
    )


def _parsed_images(entries: Mapping[str, str]) -> InputSpec:
    channels, height, width = json.loads(entries["input_shape"])
    return InputSpec(
        shape=(channels, height, width),
        mean=tuple(json.loads(entries["mean"])),
        std=tuple(json.loads(entries["std"])),
        interpolation=entries["interpolation"],
        crop_pct=json.loads(entries["crop_pct"]),
    )
