"""What a network takes and what its outputs mean. Lowest layer: standard library only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from fitcompress.errors import RecipeError, TeacherError

__all__ = [
    "InputSpec",
    "Interface",
    "OutputKind",
    "TensorSpec",
    "interface_of",
    "metadata_of",
    "read_tensor_spec",
]

OutputKind = Literal["classes", "labels", "values"]
"""What an output means: logits of one class out of K, logits of K independent yes/no labels, or
plain numbers.
"""


_DTYPES = (
    *("float32", "float64", "float16", "bfloat16"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images a network takes: float32 NCHW, (x / 255 - mean) / std per channel."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    """Share of the shorter side that the centre crop keeps at evaluation."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input that is no image: a tensor that the network takes as it is."""

    shape: tuple[int, ...]
    """Without the batch, which comes first."""
    dtype: str = "float32"
    name: str = ""
    """What the network calls it; empty where it does not matter yet."""

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}:{self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What one must know to use a network: what it takes, its classes, and what its outputs mean.

    Either `input` or `inputs` says what it takes.
    """

    input: InputSpec | None = None
    """Its images, for a network of images."""
    inputs: tuple[TensorSpec, ...] = ()
    """Its tensors, for any other."""
    class_names: tuple[str, ...] = ()
    """In the order of the outputs; empty where unknown."""
    activation: str = ""
    """What the network ends in: "", "softmax", "log_softmax" or "sigmoid"."""
    output_names: tuple[str, ...] = ()
    """What its source calls the outputs, in their order; empty where they have no names."""
    output_kind: OutputKind | None = None
    """What every output means; None reads it from each one's shape."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where the network comes from: teacher, multipliers, fitcompress version."""

    @property
    def images(self) -> InputSpec:
        """The images that the network takes.

        Raises:
            TeacherError: it takes none.
        """
        if self.input is None:
            raise TeacherError(
                f"expected a network of images, this one takes {_listed(self.inputs)}",
                advice="`fitcompress plan` and `inspect` work for it; images cannot train it.",
            )
        return self.input

    def kind_of(self, shape: Sequence[int]) -> OutputKind:
        """What an output of this shape (with the batch) means: one row of scores is classes, or
        labels behind a sigmoid; all else is values.

        >>> Interface().kind_of((2, 10)), Interface().kind_of((2, 21, 32, 32))
        ('classes', 'values')
        """
        if self.output_kind is not None and len(shape) > 1:
            return self.output_kind
        if len(shape) != 2 or (shape[1] == 1 and not self.activation):
            return "values"
        return "labels" if self.activation == "sigmoid" else "classes"


def read_tensor_spec(text: str) -> TensorSpec:
    """The input that a text stands for: its sizes without the batch, and a dtype where it is not
    float32.

    Raises:
        RecipeError: it cannot be read so.

    >>> read_tensor_spec("128:int64")
    TensorSpec(shape=(128,), dtype='int64', name='')
    """
    sizes, _, dtype = text.strip().partition(":")
    is_shape = re.fullmatch(r"([1-9]\d*(x[1-9]\d*)*)?", sizes) is not None
    if not is_shape or (dtype or "float32") not in _DTYPES:
        raise RecipeError(
            f"cannot read the input {text!r}: expected sizes without the batch, as 1x16000, and"
            f" perhaps a dtype, as 128:int64 ({', '.join(_DTYPES)})"
        )
    shape = tuple(int(size) for size in sizes.split("x") if size)
    return TensorSpec(shape=shape, dtype=dtype or "float32")


def _listed(inputs: Sequence[TensorSpec]) -> str:
    return " and ".join(f"'{spec}'" for spec in inputs) or "nothing"


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
