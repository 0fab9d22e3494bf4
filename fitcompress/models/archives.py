"""Teachers from files: TorchScript archives, exported programs, model folders. Layer: teacher."""

from __future__ import annotations

import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fitcompress.errors import RecipeError, TeacherError
from fitcompress.formatting import first_line
from fitcompress.graph.capture.exported import capture_exported
from fitcompress.graph.capture.output_names import exported_output_names
from fitcompress.graph.capture.torchscript import capture_named_torchscript, load_torchscript
from fitcompress.graph.program import InputInfo, Program
from fitcompress.interface import interface_from_metadata
from fitcompress.models.assumed_inputs import (
    OpenRequest,
    Size,
    asking_what_it_takes,
    assumed_spec,
    described,
    first_channels,
    on_images,
    with_kind,
)
from fitcompress.models.model import load_model
from fitcompress.models.teacher import Teacher, dtype_of, made_teacher, tensor_specs
from fitcompress.models.weight_files import refuse_unsafe_export

__all__ = ["open_folder", "open_pt2", "open_torchscript"]

_COMMON_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Tried in this order on an archive that does not say what it takes."""


def open_torchscript(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    request = _as_it_says(request)
    archive = load_torchscript(Path(request.recipe.source))
    if request.inputs:
        infos = [InputInfo("", spec.shape, dtype_of(spec)) for spec in request.inputs]
        with asking_what_it_takes():
            program, names = capture_named_torchscript(archive, *infos)
        return _archive_teacher(request, program, None, names, "torchscript")
    (program, names), size = on_images(
        request,
        _archive_sizes(request, archive),
        lambda size: capture_named_torchscript(archive, size),
    )
    if request.recipe.input_size is None and size[1:] != request.image_size:
        request.notice(
            f"'{request.recipe.source}' does not say what size its images have; it runs on {size},"
            " which is used (--input-size)"
        )
    return _archive_teacher(request, program, size, names, "torchscript")


def open_pt2(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    path = Path(request.recipe.source)
    refuse_unsafe_export(path)
    request = _as_it_says(request)
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
    program, names = capture_exported(exported), exported_output_names(exported)
    _refuse_other_inputs(request, program)
    size = program.inputs[0].shape
    is_image = len(program.inputs) == 1 and program.inputs[0].dtype.is_floating_point
    if request.inputs or not is_image or len(size) != 3:
        return _archive_teacher(request, program, None, names, "pt2")
    return _archive_teacher(request, program, (size[0], size[1], size[2]), names, "pt2")


def _refuse_other_inputs(request: OpenRequest, program: Program) -> None:
    own, said = (" and ".join(map(str, i)) for i in (tensor_specs(program), request.inputs))
    if said and said != own:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': it says itself that it takes {own},"
            f" not {said}",
            advice="Drop --input.",
        )


def open_folder(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    model = load_model(Path(request.recipe.source))
    return made_teacher(
        model.program,
        with_kind(request, model.interface),
        name=request.recipe.source,
        kind="folder",
        weights_from="archive",
    )


def _as_it_says(request: OpenRequest) -> OpenRequest:
    """The request with what an archive of fitcompress's says of itself, where the user says nothing
    else.
    """
    with zipfile.ZipFile(request.recipe.source) as archive:
        entries = {
            name.partition("/extra/")[2]: archive.read(name).decode("utf-8", "replace")
            for name in archive.namelist()
            if "/extra/" in name
        }
    try:
        own = interface_from_metadata(entries)
    except (KeyError, ValueError):
        return request
    recipe = request.recipe
    if own.input is not None:
        recipe = replace(recipe, input_size=recipe.input_size or own.input.shape)
    return replace(request, recipe=recipe, own=own)


def _archive_teacher(
    request: OpenRequest,
    program: Program,
    size: Size | None,
    output_names: tuple[str, ...],
    kind: str,
) -> Teacher:
    images = None if size is None else assumed_spec(request, size)
    return made_teacher(
        program,
        described(request, program, images, output_names),
        name=request.recipe.source,
        kind=kind,
        weights_from="archive",
    )


def _archive_sizes(request: OpenRequest, archive: nn.Module) -> list[Size]:
    """The sizes that an archive may take: the one asked for, that of the data, then common ones."""
    if request.recipe.input_size is not None:
        return [request.recipe.input_size]
    channels = first_channels(archive)
    followed = [(channels, *request.image_size)] if request.image_size is not None else []
    return [*followed, *((channels, side, side) for side in _COMMON_SIDES)]


def _refuse_weights(request: OpenRequest) -> None:
    if request.recipe.weights is not None:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': it brings its own weights, so"
            f" '{request.recipe.weights}' cannot be loaded into it",
            advice="Drop --teacher-weights.",
        )
