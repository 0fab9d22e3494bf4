"""The inputs of a network and the meaning of its outputs, also as metadata of files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fitcompress.errors import RecipeError, TeacherError

__all__ = [
    "InputSpec",
    "Interface",
    "OutputKind",
    "TensorSpec",
    "interface_from_json",
    "interface_from_metadata",
    "interface_to_metadata",
    "read_tensor_spec",
]

OutputKind = Literal["classes", "labels", "values"]
"""Logits of one class out of K, logits of K independent binary labels, or plain numbers."""

_DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Image input: float32 NCHW, (x / 255 - mean) / std per channel."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    """Share of the shorter side that the center crop keeps at evaluation."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Input other than an image: a tensor that is passed to the network unchanged."""

    shape: tuple[int, ...]
    """Shape without the leading batch dimension."""
    dtype: str = "float32"
    name: str = ""
    """Name of the network's argument; empty if unknown."""

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}:{self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """How to use a network: its inputs, classes and outputs.

    Exactly one of `input` and `inputs` is set, unless the network has no inputs.
    """

    input: InputSpec | None = None
    """Input of an image model."""
    inputs: tuple[TensorSpec, ...] = ()
    """Inputs of any other model."""
    class_names: tuple[str, ...] = ()
    """In the order of the scores; empty if unknown."""
    activation: str = ""
    """Activation that was removed from the end: "", "softmax", "log_softmax" or "sigmoid"."""
    output_names: tuple[str, ...] = ()
    """Names of the outputs in order; empty if they have none."""
    output_kind: OutputKind | None = None
    """Meaning of every output; None infers it from each shape."""
    origin: dict[str, str] = field(default_factory=dict)
    """Teacher, multipliers and fitcompress version that the network was made with."""

    @property
    def images(self) -> InputSpec:
        """The image input.

        Raises:
            TeacherError: the network is not an image model.
        """
        if self.input is None:
            raise TeacherError(
                f"expected an image model, got one with inputs {_listed(self.inputs)}",
                code="images-required",
                advice="Only `fitcompress plan` and `fitcompress inspect` support such a model.",
                inputs=list(map(str, self.inputs)),
            )
        return self.input

    def kind_of(self, shape: Sequence[int]) -> OutputKind:
        """The meaning of an output of this shape, which includes the batch.

        A row of scores per sample is "classes", or "labels" before a sigmoid; any other shape is
        "values".

        >>> Interface().kind_of((2, 10)), Interface().kind_of((2, 21, 32, 32))
        ('classes', 'values')
        """
        if self.output_kind is not None and len(shape) > 1:
            return self.output_kind
        if len(shape) != 2 or (shape[1] == 1 and not self.activation):
            return "values"
        return "labels" if self.activation == "sigmoid" else "classes"


def read_tensor_spec(text: str) -> TensorSpec:
    """Parses "SIZES:DTYPE": sizes without the batch; the dtype defaults to float32.

    Raises:
        RecipeError: the text has another form.

    >>> read_tensor_spec("128:int64")
    TensorSpec(shape=(128,), dtype='int64', name='')
    """
    sizes, _, dtype = text.strip().partition(":")
    is_shape = re.fullmatch(r"([1-9]\d*(x[1-9]\d*)*)?", sizes) is not None
    if not is_shape or (dtype or "float32") not in _DTYPES:
        raise RecipeError(
            f"reading the input '{text}': expected sizes without the batch, such as 1x16000, and"
            " optionally a dtype, such as 128:int64",
            code="input-malformed",
            advice=f"Dtypes are {', '.join(_DTYPES)}.",
            input=text,
        )
    shape = tuple(int(size) for size in sizes.split("x") if size)
    return TensorSpec(shape=shape, dtype=dtype or "float32")


def _listed(inputs: Sequence[TensorSpec]) -> str:
    return " and ".join(f"'{spec}'" for spec in inputs) or "nothing"


# --- metadata of exported files -----------------------------------------------------------------


def interface_to_metadata(
    interface: Interface, version: str, *, takes_pixels: bool = False
) -> dict[str, str]:
    """The interface as text entries; `interface_from_metadata` reads them.

    version: fitcompress version.
    takes_pixels: whether the file includes its preprocessing.
    """
    values: Mapping[str, object] = {
        **_input_metadata(interface, takes_pixels),
        "class_names": interface.class_names,
        "activation": interface.activation,
        "output_names": interface.output_names,
        "output_kind": interface.output_kind or "",
        "origin": interface.origin,
        "fitcompress_version": version,
    }
    return {key: v if isinstance(v, str) else json.dumps(v) for key, v in values.items()}


def _input_metadata(interface: Interface, takes_pixels: bool) -> dict[str, object]:
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


def interface_from_metadata(entries: Mapping[str, str]) -> Interface:
    """Reads entries that `interface_to_metadata` wrote; other entries are ignored.

    Raises:
        KeyError, TypeError, ValueError: an entry is missing or malformed.
    """
    data: dict[str, Any] = {
        key: entries[key] for key in ("activation", "output_kind") if key in entries
    }
    for key in ("class_names", "output_names", "origin", "inputs"):
        if key in entries:
            data[key] = json.loads(entries[key])
    data["input"] = None
    if "input_shape" in entries:
        values = {key: json.loads(entries[key]) for key in ("mean", "std", "crop_pct")}
        shape = json.loads(entries["input_shape"])
        data["input"] = {**values, "shape": shape, "interpolation": entries["interpolation"]}
    return interface_from_json(data)


# --- JSON of model folders ----------------------------------------------------------------------


def interface_from_json(data: Mapping[str, Any]) -> Interface:
    """Reads `dataclasses.asdict(interface)`, also as 0.1.0 wrote it.

    Raises:
        KeyError, TypeError, ValueError: an entry is missing or malformed.
    """
    # The first model folders held only image models and had none of the entries read by `get`.
    return Interface(
        input=None if data["input"] is None else _input_spec_from_json(data["input"]),
        inputs=tuple(map(_tensor_spec_from_json, data.get("inputs", ()))),
        class_names=tuple(map(str, data["class_names"])),
        activation=str(data["activation"]),
        output_names=tuple(map(str, data.get("output_names", ()))),
        output_kind=data.get("output_kind") or None,
        origin={str(key): str(value) for key, value in data["origin"].items()},
    )


def _input_spec_from_json(data: Mapping[str, Any]) -> InputSpec:
    channels, height, width = map(int, data["shape"])
    return InputSpec(
        shape=(channels, height, width),
        mean=tuple(map(float, data["mean"])),
        std=tuple(map(float, data["std"])),
        interpolation=str(data["interpolation"]),
        crop_pct=float(data["crop_pct"]),
    )


def _tensor_spec_from_json(data: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(map(int, data["shape"]))
    return TensorSpec(shape=shape, dtype=str(data["dtype"]), name=str(data["name"]))
