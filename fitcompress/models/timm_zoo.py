"""Teachers by timm's names. Layer: teacher. The one file that imports timm's model factory."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from fitcompress.errors import CaptureError, TeacherError, near_misses
from fitcompress.formatting import first_line
from fitcompress.graph.program import Program
from fitcompress.interface import InputSpec, TensorSpec
from fitcompress.models.assumed_inputs import (
    OpenRequest,
    Size,
    at_first_size,
    checked,
    described,
    load_file,
)
from fitcompress.models.hub import quiet_hub
from fitcompress.models.teacher import Teacher, captured, made_teacher, seeded

__all__ = ["open_timm"]


def open_timm(request: OpenRequest) -> Teacher:
    recipe = request.recipe
    _refuse_unknown_name(recipe.source)
    module, weights_from = _timm_module(request)
    config = timm.data.resolve_model_data_config(module)
    own: Size = tuple(config["input_size"])
    sizes = request.sizes(own, multiple_of=_patch_size(module))
    program, size = at_first_size(sizes, lambda size: _timm_at(request, module, own, size))
    spec = InputSpec(
        shape=size,
        mean=recipe.mean or _per_channel(config["mean"], size[0]),
        std=recipe.std or _per_channel(config["std"], size[0]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]) if size == own else 1.0,
    )
    return made_teacher(
        program,
        described(request, program, checked(spec)),
        name=recipe.source,
        kind="timm",
        weights_from=weights_from,
        can_resize_classes=True,
    )


def _per_channel(values: Sequence[float], num_channels: int) -> tuple[float, ...]:
    """The values of the channels; for other channels than these, their mean for each."""
    if len(values) == num_channels:
        return tuple(values)
    return (sum(values) / len(values),) * num_channels


def _timm_module(request: OpenRequest) -> tuple[nn.Module, str]:
    """The model at its own size with its weights, and where these came from."""
    recipe = request.recipe
    try:
        if recipe.weights is not None:
            module = _create_timm(request, pretrained=False)
            if not request.meta:
                load_file(request, module, recipe.weights)
            return module, "file"
        if not recipe.pretrained or request.meta:
            return _create_timm(request, pretrained=False), "random"
        return _create_timm(request, pretrained=True), "pretrained"
    except _UnavailableError as error:
        if not request.allow_random or ":" in recipe.source:
            raise TeacherError(
                f"opening teacher '{recipe.source}': its pretrained weights cannot be had"
                f" ({error})",
                advice="Pass --teacher-weights FILE with a plain timm name;"
                " --no-pretrained plans with random weights.",
            ) from error
        request.notice(
            f"the pretrained weights of '{recipe.source}' cannot be had ({error});"
            " the teacher starts from random weights"
        )
        return _create_timm(request, pretrained=False), "random"


def _timm_at(request: OpenRequest, module: nn.Module, own: Size, size: Size) -> Program:
    """The program at an input size; one whose size is built in is built again."""
    is_fixed = bool(module.pretrained_cfg.get("fixed_input_size"))  # type: ignore[union-attr, operator]
    if size != own and is_fixed:
        if request.recipe.weights is not None and not request.meta:
            raise CaptureError(f"the weights of '{request.recipe.source}' are for inputs of {own}")
        pretrained = request.recipe.pretrained and not request.meta
        try:
            module = _create_timm(request, pretrained=pretrained, img_size=size[1:])
        except TeacherError as error:  # nothing was wrong at its own size
            raise CaptureError(error.message) from error
    _resize_head(request, module)
    return captured(module, TensorSpec(shape=size), meta=request.meta)[0]


def _patch_size(module: nn.Module) -> tuple[int, int]:
    """(height, width) of the patches that a transformer cuts its images into, or (1, 1)."""
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", (1, 1))
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    return int(height), int(width)


def _create_timm(request: OpenRequest, *, pretrained: bool, **options: Any) -> nn.Module:
    recipe = request.recipe
    if recipe.num_classes is not None:
        options["num_classes"] = recipe.num_classes
    if recipe.input_size is not None:
        options["in_chans"] = recipe.input_size[0]
    device = torch.device("meta") if request.meta else contextlib.nullcontext()
    with seeded(request.seed), quiet_hub(), device:
        try:
            return timm.create_model(recipe.source, pretrained=pretrained, **options)
        except Exception as error:
            if pretrained or recipe.source.startswith(("hf-hub:", "hf_hub:")):
                raise _UnavailableError(_unavailable_reason(error)) from error
            raise TeacherError(
                f"opening teacher '{recipe.source}': timm could not build it: {first_line(error)}"
            ) from error


class _UnavailableError(Exception):
    """Weights that cannot be downloaded."""


def _unavailable_reason(error: Exception) -> str:
    if isinstance(error, OSError) or "connection" in str(error).lower():
        return "no connection to the Hugging Face hub, and they are not in its cache"
    return first_line(error)


def _refuse_unknown_name(source: str) -> None:
    if ":" in source:
        return
    name, _, tag = source.partition(".")
    if not timm.is_model(name):
        raise TeacherError(
            f"opening teacher '{source}': timm {timm.__version__} has no model of that name",
            advice=near_misses(name, timm.list_models()) or "timm.list_models() lists them all.",
        )
    known = timm.list_pretrained(f"{name}.*") if tag else []
    if tag and source not in known:
        raise TeacherError(
            f"opening teacher '{source}': timm {timm.__version__} has no weights '{tag}'"
            f" for '{name}'",
            advice=near_misses(source, known) or f"Known are {', '.join(known) or 'none'}.",
        )


def _resize_head(request: OpenRequest, module: nn.Module) -> None:
    """Gives a timm model a fresh head when the data has another number of classes."""
    wanted = request.num_classes
    if wanted is None or getattr(module, "num_classes", wanted) == wanted:
        return
    device = torch.device("meta") if request.meta else contextlib.nullcontext()
    with seeded(request.seed), device:
        module.reset_classifier(wanted)  # type: ignore[operator]
