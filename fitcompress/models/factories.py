"""Teachers from a factory `package.module:function`, which returns a module."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from fitcompress.errors import TeacherError, near_misses
from fitcompress.formatting import first_line
from fitcompress.interface import InputSpec, TensorSpec
from fitcompress.models.input_guesses import (
    assumed_spec,
    capture_on_images,
    guess_channels,
    input_advice,
)
from fitcompress.models.open_request import OpenRequest, load_weight_file, make_interface
from fitcompress.models.teacher import (
    NamedProgram,
    Teacher,
    capture_for_inputs,
    count_classes,
    make_teacher,
    seeded,
)

__all__ = ["open_factory"]


def open_factory(request: OpenRequest) -> Teacher:
    recipe = request.recipe
    factory = _import_factory(recipe.source)
    takes_classes = _takes_num_classes(factory)
    module = _call_factory(request, factory, recipe.num_classes if takes_classes else None)
    weights_from = "factory"
    if recipe.weights is not None:
        load_weight_file(request, module, recipe.weights)
        weights_from = "file"
    (program, names), inputs, images = _capture(request, module)
    interface = make_interface(request, program, images, names)
    if request.num_classes not in (None, count_classes(program, interface)) and takes_classes:
        resized = _call_factory(request, factory, request.num_classes)
        _copy_fitting(module, resized)
        program, _ = capture_for_inputs(resized, *inputs)
    return make_teacher(
        program,
        interface,
        name=recipe.source,
        kind="factory",
        weights_from=weights_from,
        can_resize_classes=takes_classes,
    )


def _capture(
    request: OpenRequest, module: nn.Module
) -> tuple[NamedProgram, tuple[TensorSpec, ...], InputSpec | None]:
    """The module's program, its inputs, and the image input of an image model."""
    if request.inputs:
        with input_advice():
            return capture_for_inputs(module, *request.inputs), request.inputs, None
    own = (guess_channels(module), *(request.image_size or (224, 224)))
    captured, size = capture_on_images(
        request, request.sizes(own), lambda size: capture_for_inputs(module, TensorSpec(shape=size))
    )
    return captured, (TensorSpec(shape=size),), assumed_spec(request, size)


def _import_factory(source: str) -> Callable[..., Any]:
    """Imports the factory; modules in the current folder can be imported."""
    module_name, _, name = source.partition(":")
    folder = str(Path.cwd())
    try:
        with _first_on_path(folder):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{source}': importing '{module_name}' failed: {first_line(error)}",
            code="factory-import-failed",
            advice="Run from the folder that contains the module, or install it.",
            source=source,
        ) from error
    factory: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(factory):
        raise TeacherError(
            f"opening teacher '{source}': '{module_name}' has no function '{name}'",
            code="factory-missing",
            advice=near_misses(name, [key for key in vars(module) if not key.startswith("_")]),
            source=source,
        )
    return factory


def _call_factory(
    request: OpenRequest, factory: Callable[..., Any], num_classes: int | None
) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with seeded(request.seed):
            module = factory(**options)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': the factory failed: {first_line(error)}",
            code="factory-failed",
            source=request.recipe.source,
        ) from error
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': expected the factory to return an"
            f" nn.Module, got {type(module).__name__}",
            code="factory-result-type",
            source=request.recipe.source,
            got=type(module).__name__,
        )
    return module


def _takes_num_classes(factory: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return takes_any or "num_classes" in parameters


def _copy_fitting(source: nn.Module, target: nn.Module) -> None:
    """Copies the tensors that agree in name and shape; a new head keeps its random values."""
    own = target.state_dict()
    fitting = {k: v for k, v in source.state_dict().items() if k in own and v.shape == own[k].shape}
    target.load_state_dict(fitting, strict=False)


@contextlib.contextmanager
def _first_on_path(folder: str) -> Iterator[None]:
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
