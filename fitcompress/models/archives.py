"""Teachers from TorchScript archives, exported programs and model folders."""

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
from fitcompress.models.input_guesses import (
    assumed_spec,
    capture_on_images,
    guess_channels,
    input_advice,
)
from fitcompress.models.model import load_model
from fitcompress.models.open_request import OpenRequest, Size, make_interface, with_output_kind
from fitcompress.models.teacher import Teacher, dtype_of, make_teacher, tensor_specs
from fitcompress.models.weight_files import refuse_unsafe_export

__all__ = ["open_folder", "open_pt2", "open_torchscript"]

_COMMON_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Sides of square images, in the order in which they are tried."""


def open_torchscript(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    request = _with_stored_interface(request)
    archive = load_torchscript(Path(request.recipe.source))
    if request.inputs:
        infos = [InputInfo("", spec.shape, dtype_of(spec)) for spec in request.inputs]
        with input_advice():
            program, names = capture_named_torchscript(archive, *infos)
        return _archive_teacher(request, program, None, names, "torchscript")
    (program, names), size = capture_on_images(
        request,
        _archive_sizes(request, archive),
        lambda size: capture_named_torchscript(archive, size),
    )
    if request.recipe.input_size is None and size[1:] != request.image_size:
        request.notice(
            f"'{request.recipe.source}' does not define its input size; using {size}, which"
            " works (to change it, use --input-size)",
            code="input-size-assumed",
        )
    return _archive_teacher(request, program, size, names, "torchscript")


def open_pt2(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    path = Path(request.recipe.source)
    refuse_unsafe_export(path)
    request = _with_stored_interface(request)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(path)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{path}': torch {torch.__version__} cannot read this program:"
            f" {first_line(error)}",
            code="pt2-unreadable",
            advice="Export it again with this version of torch.",
            path=str(path),
        ) from error
    program, names = capture_exported(exported), exported_output_names(exported)
    _refuse_other_inputs(request, program)
    size = program.inputs[0].shape
    is_image = len(program.inputs) == 1 and program.inputs[0].dtype.is_floating_point
    if request.inputs or not is_image or len(size) != 3:
        return _archive_teacher(request, program, None, names, "pt2")
    return _archive_teacher(request, program, (size[0], size[1], size[2]), names, "pt2")


def _refuse_other_inputs(request: OpenRequest, program: Program) -> None:
    own, given = (
        [str(spec) for spec in specs] for specs in (tensor_specs(program), request.inputs)
    )
    if given and given != own:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': expected inputs {' and '.join(own)}, got"
            f" {' and '.join(given)}",
            code="inputs-mismatch",
            advice="Drop --input: a .pt2 file describes its inputs.",
            source=request.recipe.source,
            expected=own,
            got=given,
        )


def open_folder(request: OpenRequest) -> Teacher:
    _refuse_weights(request)
    model = load_model(Path(request.recipe.source))
    return make_teacher(
        model.program,
        with_output_kind(request, model.interface),
        name=request.recipe.source,
        kind="folder",
        weights_from="archive",
    )


def _with_stored_interface(request: OpenRequest) -> OpenRequest:
    """The request with the interface that fitcompress stored in the archive, if any."""
    with zipfile.ZipFile(request.recipe.source) as archive:
        entries = {
            name.partition("/extra/")[2]: archive.read(name).decode("utf-8", "replace")
            for name in archive.namelist()
            if "/extra/" in name
        }
    try:
        stored = interface_from_metadata(entries)
    except (KeyError, ValueError):
        return request
    recipe = request.recipe
    if stored.input is not None:
        recipe = replace(recipe, input_size=recipe.input_size or stored.input.shape)
    return replace(request, recipe=recipe, stored=stored)


def _archive_teacher(
    request: OpenRequest,
    program: Program,
    size: Size | None,
    output_names: tuple[str, ...],
    kind: str,
) -> Teacher:
    images = None if size is None else assumed_spec(request, size)
    return make_teacher(
        program,
        make_interface(request, program, images, output_names),
        name=request.recipe.source,
        kind=kind,
        weights_from="archive",
    )


def _archive_sizes(request: OpenRequest, archive: nn.Module) -> list[Size]:
    """The requested input size, or the sizes to try: the data's, then common ones."""
    if request.recipe.input_size is not None:
        return [request.recipe.input_size]
    channels = guess_channels(archive)
    of_data = [(channels, *request.image_size)] if request.image_size is not None else []
    return [*of_data, *((channels, side, side) for side in _COMMON_SIDES)]


def _refuse_weights(request: OpenRequest) -> None:
    if request.recipe.weights is not None:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': it includes its weights, so"
            f" '{request.recipe.weights}' cannot be loaded into it",
            code="weights-not-applicable",
            advice="Drop --teacher-weights.",
            source=request.recipe.source,
            weights=request.recipe.weights,
        )
