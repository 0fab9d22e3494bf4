"""Teachers from a function of the user's own, named `package.module:function`. Layer: teacher."""

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
from fitcompress.models.assumed_inputs import (
    OpenRequest,
    asking_what_it_takes,
    assumed_spec,
    described,
    first_channels,
    load_file,
    on_images,
)
from fitcompress.models.teacher import Named, Teacher, captured, count_classes, made_teacher, seeded

__all__ = ["open_factory"]


def open_factory(request: OpenRequest) -> Teacher:
    recipe = request.recipe
    factory = _imported(recipe.source)
    takes_classes = _takes_num_classes(factory)
    module = _made(request, factory, recipe.num_classes if takes_classes else None)
    weights_from = "factory"
    if recipe.weights is not None:
        load_file(request, module, recipe.weights)
        weights_from = "file"
    (program, names), inputs, images = _captured(request, module)
    interface = described(request, program, images, names)
    if request.num_classes not in (None, count_classes(program, interface)) and takes_classes:
        resized = _made(request, factory, request.num_classes)
        _copy_fitting(module, resized)
        program, _ = captured(resized, *inputs)
    return made_teacher(
        program,
        interface,
        name=recipe.source,
        kind="factory",
        weights_from=weights_from,
        can_resize_classes=takes_classes,
    )


def _captured(
    request: OpenRequest, module: nn.Module
) -> tuple[Named, tuple[TensorSpec, ...], InputSpec | None]:
    """The module's program, what it takes, and how its images look where it takes images."""
    if request.inputs:
        with asking_what_it_takes():
            return captured(module, *request.inputs), request.inputs, None
    own = (first_channels(module), *(request.image_size or (224, 224)))
    found, size = on_images(
        request, request.sizes(own), lambda size: captured(module, TensorSpec(shape=size))
    )
    return found, (TensorSpec(shape=size),), assumed_spec(request, size)


def _imported(source: str) -> Callable[..., Any]:
    """The factory that `package.module:name` means; the current folder can be imported from."""
    module_name, _, name = source.partition(":")
    folder = str(Path.cwd())
    try:
        with _first_on_path(folder):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{source}': importing '{module_name}' failed: {first_line(error)}",
            advice="Run from the folder that holds the module, or install it.",
        ) from error
    factory: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(factory):
        raise TeacherError(
            f"opening teacher '{source}': '{module_name}' has no function '{name}'",
            advice=near_misses(name, [key for key in vars(module) if not key.startswith("_")]),
        )
    return factory


def _made(request: OpenRequest, factory: Callable[..., Any], num_classes: int | None) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with seeded(request.seed):
            module = factory(**options)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': the factory failed: {first_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': expected the factory to return an"
            f" nn.Module, got {type(module).__name__}"
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
    """Copies every tensor whose name and shape agree; a head of another size keeps its fresh
    values.
    """
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
