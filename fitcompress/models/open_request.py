"""The arguments of `open_teacher`, passed to the opener of each kind of teacher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from fitcompress.errors import CaptureError, ObstacleError, RecipeError
from fitcompress.events import Emit, Notice
from fitcompress.formatting import first_line
from fitcompress.graph.program import Program
from fitcompress.interface import InputSpec, Interface, TensorSpec, read_tensor_spec
from fitcompress.models.teacher import tensor_specs
from fitcompress.models.weight_files import load_weights, read_weights
from fitcompress.recipe.schema import TeacherRecipe

__all__ = [
    "OpenRequest",
    "Size",
    "capture_at_first_size",
    "checked_spec",
    "load_weight_file",
    "make_interface",
    "with_output_kind",
]

Captured = TypeVar("Captured")
Size = tuple[int, int, int]
"""Channels, height, width."""


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
    normalized_as: InputSpec | None = None
    stored: Interface = field(default_factory=Interface)
    """The interface stored in the file of the teacher, as far as there is one."""

    def notice(self, message: str, *, code: str) -> None:
        self.emit(Notice(topic="teacher", message=message, code=code))

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs other than images, as set by the user."""
        return tuple(map(read_tensor_spec, self.recipe.inputs))

    def sizes(self, own: Size, multiple_of: tuple[int, int] = (1, 1)) -> list[Size]:
        """Input sizes to try in order: the user's, or the data's (rounded up) and the model's own.

        own: size of the model's configuration.
        multiple_of: (height, width) to which the size of the data is rounded up.
        """
        if self.recipe.input_size is not None:
            return [self.recipe.input_size]
        if self.image_size is None:
            return [own]
        height, width = (
            -(-side // patch) * patch
            for side, patch in zip(self.image_size, multiple_of, strict=True)
        )
        return list(dict.fromkeys([(own[0], height, width), own]))


def capture_at_first_size(
    sizes: Sequence[Size], capture: Callable[[Size], Captured]
) -> tuple[Captured, Size]:
    """The result of `capture` at the first size at which the network runs, and this size.

    Raises:
        CaptureError: the network runs at none of the sizes; the error of the first size is raised.
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


def make_interface(
    request: OpenRequest,
    program: Program,
    images: InputSpec | None,
    output_names: tuple[str, ...] = (),
) -> Interface:
    """The interface of a program; `images` is None if its inputs are not images."""
    interface = Interface(
        input=images,
        inputs=tensor_specs(program) if images is None else (),
        class_names=_class_names(request.recipe) or request.stored.class_names,
        output_names=output_names,
        output_kind=request.stored.output_kind,
    )
    return with_output_kind(request, interface)


def with_output_kind(request: OpenRequest, interface: Interface) -> Interface:
    """The interface with the output kind that the user set, if any."""
    kind = request.recipe.output_kind
    return interface if kind == "auto" else replace(interface, output_kind=kind)


def _class_names(recipe: TeacherRecipe) -> tuple[str, ...]:
    if recipe.class_map is None:
        return ()
    try:
        text = Path(recipe.class_map).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"reading class names from '{recipe.class_map}': {first_line(error)}",
            code="class-map-unreadable",
            path=recipe.class_map,
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def checked_spec(spec: InputSpec) -> InputSpec:
    """The spec itself.

    Raises:
        RecipeError: it does not have one mean and one positive deviation per channel.
    """
    channels = spec.shape[0]
    if len(spec.mean) != channels or len(spec.std) != channels or min(spec.std) <= 0:
        raise RecipeError(
            f"reading the input settings: expected {channels} means and {channels} positive"
            f" standard deviations, got {list(spec.mean)} and {list(spec.std)}",
            code="normalization-invalid",
            channels=channels,
            mean=list(spec.mean),
            std=list(spec.std),
        )
    return spec


def load_weight_file(request: OpenRequest, module: nn.Module, path: str) -> None:
    """Loads a weight file into the module, with a notice if the tensors are matched by order."""
    if load_weights(module, read_weights(Path(path)), path):
        request.notice(
            f"'{path}' has no tensor name in common with '{request.recipe.source}'; its tensors"
            " were matched by order, since all shapes agree",
            code="weights-matched-by-order",
        )
