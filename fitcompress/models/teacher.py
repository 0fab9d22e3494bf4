"""What an opened teacher is, and the steps that all kinds of teachers share. Layer: teacher."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from fitcompress.errors import CaptureError, ObstacleError, RecipeError
from fitcompress.events import Emit, Notice
from fitcompress.graph.capture.capture import capture_named_module
from fitcompress.graph.cut import split_activation
from fitcompress.graph.program import Program, output_nodes, program_to_json
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.recipe.recipe import TeacherRecipe
from fitcompress.interface import InputSpec, Interface, OutputKind, TensorSpec, read_tensor_spec
from fitcompress.models.checkpoints import load_weights, read_weights

__all__ = [
    "Named",
    "Request",
    "Size",
    "Teacher",
    "asking_what_it_takes",
    "assumed_spec",
    "at_first_size",
    "captured",
    "checked",
    "class_names",
    "count_classes",
    "described",
    "dtype_of",
    "fingerprint_of",
    "first_channels",
    "first_line",
    "load_file",
    "made_teacher",
    "on_images",
    "seeded",
    "tensor_specs",
    "with_kind",
]

T = TypeVar("T")
Named = tuple[Program, tuple[str, ...]]
"""A program and the names of its outputs."""
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
    """Scores in a row of the first output; 0 where that is no row of scores."""
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
    normalised_as: InputSpec | None = None
    own: Interface = field(default_factory=Interface)
    """What the source says of itself."""

    def notice(self, message: str) -> None:
        self.emit(Notice(topic="teacher", message=message))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the user says that it takes instead of images."""
        return tuple(map(read_tensor_spec, self.recipe.inputs))

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
    _check_batches(program, f"opening teacher '{facts['name']}'")
    program, activation = split_activation(program)
    interface = replace(interface, activation=activation or interface.activation)
    return Teacher(
        program=program,
        interface=interface,
        num_classes=count_classes(program, interface),
        fingerprint=fingerprint_of(program),
        **facts,
    )


def at_first_size(sizes: Sequence[Size], capture: Callable[[Size], T]) -> tuple[T, Size]:
    """What `capture` gives at the first size that the network runs at.

    Raises:
        CaptureError: there is none; it is the error at the first size.
    """
    first_error: CaptureError | None = None
    for size in sizes:
        try:
            return capture(size), size
        except ObstacleError:
            raise
        except CaptureError as error:
            first_error = first_error or error
    assert first_error is not None, sizes
    raise first_error


def on_images(
    request: Request, sizes: Sequence[Size], capture: Callable[[Size], Named]
) -> tuple[Named, Size]:
    """What `capture` gives at the first size of images that the network runs at. Where nobody said
    that it takes images, that is a guess.

    Raises:
        CaptureError: there is none, or the guess is wrong: without a weight of four dimensions and
            with an output that has all dimensions of the image but the last, it is for rows.
    """
    with asking_what_it_takes():
        found, size = at_first_size(sizes, capture)
    if request.recipe.input_size is None and _is_for_rows(found[0]):
        raise CaptureError(
            f"running '{request.recipe.source}' on images of {size}: it only changes their last"
            " dimension, so it is none of images",
            advice=_SAY_WHAT_IT_TAKES,
        )
    return found, size


@contextlib.contextmanager
def asking_what_it_takes() -> Iterator[None]:
    """Says of a capture that failed, where that may be for want of the right inputs, how to give
    them.
    """
    try:
        yield
    except ObstacleError:
        raise
    except CaptureError as error:
        advice = f"{error.advice} {_SAY_WHAT_IT_TAKES}".strip()
        raise CaptureError(error.message, advice=advice) from error


_SAY_WHAT_IT_TAKES = (
    "Say what it takes: images with --input-size 64, anything else with --input 1x16000 or"
    " --input 128:int64, once for each input."
)


def _is_for_rows(program: Program) -> bool:
    if any(value.ndim >= 4 for value in program.tensors.values()):
        return False
    shapes = propagate_shapes(program)
    leading = shapes[program.inputs[0].name][:-1]
    return all(shapes[node.name][:-1] == leading for node in output_nodes(program.graph))


def captured(module: nn.Module, *inputs: TensorSpec, meta: bool = False) -> Named:
    """The program of a module for some inputs, checked on shapes at two batch sizes, and the names
    of its outputs.
    """
    examples = [torch.empty((2, *s.shape), dtype=dtype_of(s), device="meta") for s in inputs]
    program, output_names = capture_named_module(module, examples)
    if meta:  # constants that the module computed have values; now all or nothing has
        tensors = {name: value.to("meta") for name, value in program.tensors.items()}
        program = replace(program, tensors=tensors)
    _check_batches(program, f"capturing {type(module).__name__}")
    return program, output_names


def _check_batches(program: Program, doing: str) -> None:
    """Runs the program on shapes at two batch sizes: each output has one row a sample."""
    for batch_size in (1, 3):
        try:
            shapes = propagate_shapes(program, batch_size)
        except RuntimeError as error:
            raise CaptureError(
                f"{doing}: it does not run on a batch of {batch_size}: {first_line(error)}"
            ) from error
        for node in output_nodes(program.graph):
            if tuple(shapes[node.name][:1]) != (batch_size,):
                raise CaptureError(
                    f"{doing}: expected one row a sample in each output, '{node.name}' has the"
                    f" shape {shapes[node.name]} for a batch of {batch_size}",
                    advice="Let it take and return tensors whose first dimension is the batch.",
                )


def dtype_of(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype), spec
    return dtype


def count_classes(program: Program, interface: Interface) -> int:
    """The scores in a row of the first output; 0 where that is no row of scores."""
    shape = propagate_shapes(program)[output_nodes(program.graph)[0].name]
    return 0 if interface.kind_of(shape) == "values" else int(shape[1])


def described(
    request: Request,
    program: Program,
    images: InputSpec | None,
    output_names: tuple[str, ...] = (),
) -> Interface:
    """The interface of a network of images, or without them of one that takes what its program
    takes.
    """
    interface = Interface(
        input=images,
        inputs=tensor_specs(program) if images is None else (),
        class_names=class_names(request.recipe) or request.own.class_names,
        output_names=output_names,
        output_kind=request.own.output_kind,
    )
    return with_kind(request, interface)


def with_kind(request: Request, interface: Interface) -> Interface:
    """The interface with what the user says that the outputs mean."""
    kind = request.recipe.output_kind
    return interface if kind == "auto" else replace(interface, output_kind=cast(OutputKind, kind))


def tensor_specs(program: Program) -> tuple[TensorSpec, ...]:
    """The inputs of a program by name."""
    return tuple(
        TensorSpec(shape=info.shape, dtype=str(info.dtype).removeprefix("torch."), name=info.name)
        for info in program.inputs
    )


def assumed_spec(request: Request, size: Size) -> InputSpec:
    """The input of a network whose source may not say how it wants its images."""
    recipe, is_rgb = request.recipe, size[0] == 3
    if request.own.input is not None:
        own = replace(request.own.input, shape=size)
        return checked(replace(own, mean=recipe.mean or own.mean, std=recipe.std or own.std))
    known = request.normalised_as
    if known is not None and known.shape[0] == size[0]:
        mean, std = known.mean, known.std
    else:
        mean = _IMAGENET_MEAN if is_rgb else (sum(_IMAGENET_MEAN) / 3,) * size[0]
        std = _IMAGENET_STD if is_rgb else (sum(_IMAGENET_STD) / 3,) * size[0]
        if recipe.mean is None or recipe.std is None:
            request.notice(
                f"'{recipe.source}' does not say how its inputs are normalised; ImageNet's mean and"
                " standard deviation are assumed (--mean, --std)"
            )
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


def fingerprint_of(program: Program) -> str:
    """Hash of the graph and all weights: two programs with the same one compute the same."""
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
