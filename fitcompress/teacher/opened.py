"""What an opened teacher is, and the steps that all kinds of teachers share. Layer: teacher."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fitcompress.errors import CaptureError, RecipeError
from fitcompress.events import Emit, Notice
from fitcompress.graph.capture import capture_module
from fitcompress.graph.cut import split_activation
from fitcompress.graph.program import Program, output_nodes, program_to_json, propagate_shapes
from fitcompress.recipe import TeacherRecipe
from fitcompress.spec import InputSpec, Interface
from fitcompress.teacher.checkpoints import load_weights, read_weights

__all__ = [
    "Request",
    "Size",
    "Teacher",
    "assumed_spec",
    "at_first_size",
    "captured",
    "checked",
    "class_names",
    "count_classes",
    "first_channels",
    "first_line",
    "load_file",
    "made_teacher",
    "seeded",
]

Size = tuple[int, int, int]
"""Channels, height, width."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network to learn from."""

    name: str
    """What the user called it."""
    program: Program
    """Without a softmax or sigmoid at its end (`interface.activation` names it)."""
    interface: Interface
    kind: str
    """"timm", "factory", "module", "torchscript", "pt2" or "folder"."""
    weights_from: str
    """"pretrained", "random", "file" (a file of weights), "archive" (they came with it) or
    "factory".
    """
    num_classes: int
    """Size of the last dimension of the first output."""
    fingerprint: str
    """Hash of the graph and all weights: two teachers with the same one say the same."""
    can_resize_classes: bool = False
    """Whether a copy with another number of classes can be made (`open_teacher(...,
    num_classes=K)`).
    """


@dataclass(frozen=True)
class Request:
    """The arguments of `open_teacher`."""

    recipe: TeacherRecipe
    image_size: tuple[int, int] | None
    num_classes: int | None
    emit: Emit
    meta: bool
    allow_random: bool
    seed: int

    def notice(self, message: str) -> None:
        self.emit(Notice(topic="teacher", message=message))

    def sizes(self, own: Size, multiple_of: tuple[int, int] = (1, 1)) -> list[Size]:
        """The input sizes to try, the best first; the data's is rounded up to whole patches."""
        if self.recipe.input_size is not None:
            return [self.recipe.input_size]
        if self.image_size is None:
            return [own]
        height, width = (
            -(-side // patch) * patch
            for side, patch in zip(self.image_size, multiple_of, strict=True)
        )
        return list(dict.fromkeys([(own[0], height, width), own]))


def made_teacher(program: Program, interface: Interface, **facts: Any) -> Teacher:
    program, activation = split_activation(program)
    return Teacher(
        program=program,
        interface=replace(interface, activation=activation or interface.activation),
        num_classes=count_classes(program),
        fingerprint=_fingerprint(program),
        **facts,
    )


def at_first_size(
    sizes: Sequence[Size], capture: Callable[[Size], Program]
) -> tuple[Program, Size]:
    """The program at the first size that it can be captured at and runs at.

    Raises:
        CaptureError: there is none; it is the error at the first size.
    """
    first_error: CaptureError | None = None
    for size in sizes:
        try:
            return capture(size), size
        except CaptureError as error:
            first_error = first_error or error
    assert first_error is not None, sizes
    raise first_error


def captured(module: nn.Module, size: Size, *, meta: bool = False) -> Program:
    """The program of a module at an input size, checked on shapes at two batch sizes."""
    example = torch.zeros((2, *size), device="meta" if meta else "cpu")
    program = capture_module(module, (example,))
    for batch_size in (1, 3):
        try:
            propagate_shapes(program, batch_size)
        except RuntimeError as error:
            raise CaptureError(
                f"capturing {type(module).__name__}: it does not run on a batch of {batch_size}:"
                f" {first_line(error)}"
            ) from error
    return program


def count_classes(program: Program) -> int:
    return int(propagate_shapes(program)[output_nodes(program.graph)[0].name][-1])


def assumed_spec(request: Request, size: Size) -> InputSpec:
    """The input of a network that does not say how it wants its images."""
    recipe, is_rgb = request.recipe, size[0] == 3
    if recipe.mean is None or recipe.std is None:
        request.notice(
            f"'{recipe.source}' does not say how its inputs are normalised; ImageNet's mean and"
            " standard deviation are assumed (--mean, --std)"
        )
    mean = _IMAGENET_MEAN if is_rgb else (sum(_IMAGENET_MEAN) / 3,) * size[0]
    std = _IMAGENET_STD if is_rgb else (sum(_IMAGENET_STD) / 3,) * size[0]
    return checked(InputSpec(shape=size, mean=recipe.mean or mean, std=recipe.std or std))


def checked(spec: InputSpec) -> InputSpec:
    channels = spec.shape[0]
    if len(spec.mean) != channels or len(spec.std) != channels or min(spec.std) <= 0:
        raise RecipeError(
            f"reading the input settings: expected {channels} means and {channels} positive"
            f" standard deviations, got {list(spec.mean)} and {list(spec.std)}"
        )
    return spec


def class_names(recipe: TeacherRecipe) -> tuple[str, ...]:
    if recipe.class_map is None:
        return ()
    try:
        text = Path(recipe.class_map).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"reading class names from '{recipe.class_map}': {first_line(error)}"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def load_file(request: Request, module: nn.Module, weights: str) -> None:
    if load_weights(module, read_weights(Path(weights)), weights):
        request.notice(
            f"no name in '{weights}' is known to '{request.recipe.source}'; its tensors were taken"
            " in order, since every shape fits"
        )


def first_channels(module: nn.Module) -> int:
    """What the first convolution takes, or 3."""
    for value in module.state_dict().values():
        if value.ndim == 4:
            return int(value.shape[1]) if value.shape[1] <= 4 else 3
    return 3


def _fingerprint(program: Program) -> str:
    digest = hashlib.sha256(json.dumps(program_to_json(program), sort_keys=True).encode())
    for name in sorted(program.tensors):
        value = program.tensors[name]
        digest.update(name.encode())
        if not value.is_meta:
            flat = value.detach().cpu().contiguous().view(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
