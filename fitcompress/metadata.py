"""What a file says about its network, as text entries beside it. Layer: spec.

ONNX files have them as metadata, TorchScript archives and `.pt2` programs as extra files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, cast

from fitcompress.interface import InputSpec, Interface, OutputKind, TensorSpec

__all__ = ["interface_of", "metadata_of"]


def metadata_of(
    interface: Interface, version: str, *, takes_pixels: bool = False
) -> dict[str, str]:
    """The interface as text entries for a file's metadata; `interface_of` reads them back.

    version: of fitcompress.
    takes_pixels: whether the file holds its preprocessing too.
    """
    values: Mapping[str, object] = {
        **_metadata_of_inputs(interface, takes_pixels),
        "class_names": interface.class_names,
        "activation": interface.activation,
        "output_names": interface.output_names,
        "output_kind": interface.output_kind or "",
        "origin": interface.origin,
        "fitcompress_version": version,
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


def interface_of(entries: Mapping[str, str]) -> Interface:
    """What `metadata_of` wrote.

    Raises:
        KeyError, ValueError: something is missing, or is not what was written.
    """
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
