"""The arguments of an opener, and what is assumed where a source does not say what it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from fitcompress.errors import CaptureError, ObstacleError, RecipeError
from fitcompress.events import Emit, Notice
from fitcompress.formatting import first_line
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import InputSpec, Interface, TensorSpec, read_tensor_spec
from fitcompress.models.teacher import Named, T, tensor_specs
from fitcompress.models.weight_files import load_weights, read_weights
from fitcompress.recipe.schema import TeacherRecipe

__all__ = [
    "OpenRequest",
    "Size",
    "asking_what_it_takes",
    "assumed_spec",
    "at_first_size",
    "checked",
    "class_names",
    "described",
    "first_channels",
    "load_file",
    "on_images",
    "with_kind",
]

Size = tuple[int, int, int]
"""Channels, height, width."""


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class OpenRequest:
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
    request: OpenRequest, sizes: Sequence[Size], capture: Callable[[Size], Named]
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


def described(
    request: OpenRequest,
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


def with_kind(request: OpenRequest, interface: Interface) -> Interface:
    """The interface with what the user says that the outputs mean."""
    kind = request.recipe.output_kind
    return interface if kind == "auto" else replace(interface, output_kind=kind)


def assumed_spec(request: OpenRequest, size: Size) -> InputSpec:
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


def load_file(request: OpenRequest, module: nn.Module, weights: str) -> None:
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
