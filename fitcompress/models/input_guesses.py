"""Guesses about the inputs of a teacher whose source does not describe them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import nn

from fitcompress.errors import CaptureError, ObstacleError
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.interface import InputSpec
from fitcompress.models.open_request import OpenRequest, Size, capture_at_first_size, checked_spec
from fitcompress.models.teacher import NamedProgram

__all__ = ["assumed_spec", "capture_on_images", "guess_channels", "input_advice"]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DESCRIBE_INPUTS = (
    "Describe the inputs: images with --input-size 64, anything else with --input 1x16000 or"
    " --input 128:int64, once for each input."
)


def capture_on_images(
    request: OpenRequest, sizes: Sequence[Size], capture: Callable[[Size], NamedProgram]
) -> tuple[NamedProgram, Size]:
    """The capture at the first image size at which the network runs, and this size.

    Raises:
        CaptureError: the network runs at none of the sizes, or is probably not an image model.
    """
    with input_advice():
        captured, size = capture_at_first_size(sizes, capture)
    if request.recipe.input_size is None and _is_for_rows(captured[0]):
        raise CaptureError(
            f"running '{request.recipe.source}' on images of {size}: the output has the input's"
            " leading dimensions, so this is probably not an image model",
            code="image-model-unlikely",
            advice=_DESCRIBE_INPUTS,
            source=request.recipe.source,
            size=list(size),
        )
    return captured, size


@contextlib.contextmanager
def input_advice() -> Iterator[None]:
    """Adds to a `CaptureError` how to describe the inputs, unless no input can help."""
    try:
        yield
    except ObstacleError:
        raise
    except CaptureError as error:
        advice = f"{error.advice} {_DESCRIBE_INPUTS}".strip()
        raise error.reworded(error.message, advice=advice) from error


def _is_for_rows(program: Program) -> bool:
    """Whether the program probably takes rows of numbers.

    Heuristic: linear layers run on images too, along the last dimension. A network without
    four-dimensional weights (convolutions) that keeps all dimensions but the last is assumed to be
    for rows. --input-size overrides this.
    """
    if any(value.ndim >= 4 for value in program.tensors.values()):
        return False
    shapes = propagate_shapes(program)
    leading = shapes[program.inputs[0].name][:-1]
    return all(shapes[node.name][:-1] == leading for node in output_nodes(program.graph))


def guess_channels(module: nn.Module) -> int:
    """Number of input channels.

    Heuristic: the input channels of the first four-dimensional weight, the first convolution in
    order of registration; 3 if it takes more than 4 or if there is none. --input-size overrides
    this.
    """
    for value in module.state_dict().values():
        if value.ndim == 4:
            return int(value.shape[1]) if value.shape[1] <= 4 else 3
    return 3


def assumed_spec(request: OpenRequest, size: Size) -> InputSpec:
    """The image input of a source that may not describe its normalization.

    In order of precedence: the recipe, the interface stored in the file, `request.normalized_as`,
    and ImageNet's mean and standard deviation, with a notice.
    """
    recipe = request.recipe
    if request.stored.input is not None:
        stored = replace(request.stored.input, shape=size)
        mean, std = recipe.mean or stored.mean, recipe.std or stored.std
        return checked_spec(replace(stored, mean=mean, std=std))
    known = request.normalized_as
    if known is not None and known.shape[0] == size[0]:
        mean, std = known.mean, known.std
    else:
        is_rgb = size[0] == 3
        mean = _IMAGENET_MEAN if is_rgb else (sum(_IMAGENET_MEAN) / 3,) * size[0]
        std = _IMAGENET_STD if is_rgb else (sum(_IMAGENET_STD) / 3,) * size[0]
        if recipe.mean is None or recipe.std is None:
            request.notice(
                f"'{recipe.source}' does not define how its inputs are normalized; assuming"
                " ImageNet's mean and standard deviation (--mean, --std)",
                code="normalization-assumed",
            )
    return checked_spec(InputSpec(shape=size, mean=recipe.mean or mean, std=recipe.std or std))
