"""Teachers from files: TorchScript archives, exported programs, model folders. Layer: teacher."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from fitcompress.errors import RecipeError, TeacherError
from fitcompress.graph.capture import capture_exported
from fitcompress.graph.program import Program
from fitcompress.graph.torchscript import capture_torchscript, load_torchscript
from fitcompress.model import load_model
from fitcompress.spec import Interface
from fitcompress.teacher.checkpoints import refuse_unsafe_export
from fitcompress.teacher.opened import (
    Request,
    Size,
    Teacher,
    assumed_spec,
    at_first_size,
    class_names,
    first_channels,
    first_line,
    made_teacher,
)

__all__ = ["open_folder", "open_pt2", "open_torchscript"]

_COMMON_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Tried in this order on an archive that does not say what it takes."""


def open_torchscript(request: Request) -> Teacher:
    _refuse_weights(request)
    archive = load_torchscript(Path(request.recipe.source))
    sizes = _archive_sizes(request, archive)
    program, size = at_first_size(sizes, lambda size: capture_torchscript(archive, size))
    if request.recipe.input_size is None and size[1:] != request.image_size:
        request.notice(
            f"'{request.recipe.source}' does not say what size its images have; it runs on {size},"
            " which is used (--input-size)"
        )
    return _archive_teacher(request, program, size, "torchscript")


def open_pt2(request: Request) -> Teacher:
    _refuse_weights(request)
    path = Path(request.recipe.source)
    refuse_unsafe_export(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(path)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{path}': torch {torch.__version__} cannot read this program:"
            f" {first_line(error)}",
            advice="Export it again with this version of torch.",
        ) from error
    program = capture_exported(exported)
    size = program.inputs[0].shape
    if len(size) != 3:
        raise TeacherError(
            f"opening teacher '{path}': expected an input of shape (N, C, H, W), got (N, {size})"
        )
    return _archive_teacher(request, program, (size[0], size[1], size[2]), "pt2")


def open_folder(request: Request) -> Teacher:
    _refuse_weights(request)
    model = load_model(Path(request.recipe.source))
    return made_teacher(
        model.program,
        model.interface,
        name=request.recipe.source,
        kind="folder",
        weights_from="archive",
    )


def _archive_teacher(request: Request, program: Program, size: Size, kind: str) -> Teacher:
    return made_teacher(
        program,
        Interface(input=assumed_spec(request, size), class_names=class_names(request.recipe)),
        name=request.recipe.source,
        kind=kind,
        weights_from="archive",
    )


def _archive_sizes(request: Request, archive: nn.Module) -> list[Size]:
    """The sizes that an archive may take: the one asked for, that of the data, then common ones."""
    if request.recipe.input_size is not None:
        return [request.recipe.input_size]
    channels = first_channels(archive)
    followed = [(channels, *request.image_size)] if request.image_size is not None else []
    return [*followed, *((channels, side, side) for side in _COMMON_SIDES)]


def _refuse_weights(request: Request) -> None:
    if request.recipe.weights is not None:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': it brings its own weights, so"
            f" '{request.recipe.weights}' cannot be loaded into it",
            advice="Drop --teacher-weights.",
        )
