"""Teachers from timm. The only module that uses timm's model factory."""

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
from fitcompress.models.hub import quiet_hub
from fitcompress.models.open_request import (
    OpenRequest,
    Size,
    capture_at_first_size,
    checked_spec,
    load_weight_file,
    make_interface,
)
from fitcompress.models.teacher import Teacher, capture_for_inputs, make_teacher, seeded

__all__ = ["open_timm"]


def open_timm(request: OpenRequest) -> Teacher:
    recipe = request.recipe
    _refuse_unknown_name(recipe.source)
    module, weights_from = _create_with_weights(request)
    config = timm.data.resolve_model_data_config(module)
    own: Size = tuple(config["input_size"])
    sizes = request.sizes(own, multiple_of=_patch_size(module))
    program, size = capture_at_first_size(
        sizes, lambda size: _captured_at(request, module, own, size)
    )
    spec = InputSpec(
        shape=size,
        mean=recipe.mean or _per_channel(config["mean"], size[0]),
        std=recipe.std or _per_channel(config["std"], size[0]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]) if size == own else 1.0,
    )
    return make_teacher(
        program,
        make_interface(request, program, checked_spec(spec)),
        name=recipe.source,
        kind="timm",
        weights_from=weights_from,
        can_resize_classes=True,
    )


def _per_channel(values: Sequence[float], num_channels: int) -> tuple[float, ...]:
    """One value per channel; their mean for each if the number of channels differs."""
    if len(values) == num_channels:
        return tuple(values)
    return (sum(values) / len(values),) * num_channels


def _create_with_weights(request: OpenRequest) -> tuple[nn.Module, str]:
    """The model at its own input size, and the origin of its weights."""
    recipe = request.recipe
    try:
        if recipe.weights is not None:
            module = _create(request, pretrained=False)
            if not request.meta:
                load_weight_file(request, module, recipe.weights)
            return module, "file"
        if not recipe.pretrained or request.meta:
            return _create(request, pretrained=False), "random"
        return _create(request, pretrained=True), "pretrained"
    except _UnavailableError as error:
        if not request.allow_random or ":" in recipe.source:
            raise TeacherError(
                f"opening teacher '{recipe.source}': the pretrained weights are unavailable"
                f" ({error})",
                code="pretrained-unavailable",
                advice="Pass a timm name and a downloaded file with --teacher-weights, or plan with"
                " random weights (--no-pretrained).",
                source=recipe.source,
            ) from error
        request.notice(
            f"the pretrained weights of '{recipe.source}' are unavailable ({error});"
            " the teacher starts from random weights",
            code="random-weights-used",
        )
        return _create(request, pretrained=False), "random"


def _captured_at(request: OpenRequest, module: nn.Module, own: Size, size: Size) -> Program:
    """The program at an input size; a model with a fixed input size is created again."""
    is_fixed = bool(module.pretrained_cfg.get("fixed_input_size"))  # type: ignore[union-attr, operator]
    if size != own and is_fixed:
        if request.recipe.weights is not None and not request.meta:
            raise CaptureError(
                f"opening teacher '{request.recipe.source}' at {size}: its weights require {own}",
                code="input-size-fixed",
                source=request.recipe.source,
                expected=list(own),
                got=list(size),
            )
        pretrained = request.recipe.pretrained and not request.meta
        try:
            module = _create(request, pretrained=pretrained, img_size=size[1:])
        except TeacherError as error:  # it could be created at its own size
            raise CaptureError(
                error.message,
                code="input-size-unsupported",
                source=request.recipe.source,
                size=list(size),
            ) from error
    _resize_head(request, module)
    return capture_for_inputs(module, TensorSpec(shape=size), meta=request.meta)[0]


def _patch_size(module: nn.Module) -> tuple[int, int]:
    """(height, width) of the patches of a vision transformer, or (1, 1).

    Heuristic: timm's vision transformers store it as `patch_embed.patch_size`. It only decides the
    first size to try (the data's, rounded up to whole patches); the model's own size follows.
    """
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", (1, 1))
    height, width = patch if isinstance(patch, tuple) else (patch, patch)
    return int(height), int(width)


def _create(request: OpenRequest, *, pretrained: bool, **options: Any) -> nn.Module:
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
                f"opening teacher '{recipe.source}': timm cannot create it: {first_line(error)}",
                code="timm-creation-failed",
                source=recipe.source,
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
            f"opening teacher '{source}': timm {timm.__version__} has no model of this name",
            code="timm-model-unknown",
            advice=near_misses(name, timm.list_models()) or "timm.list_models() lists all names.",
            source=source,
        )
    known = timm.list_pretrained(f"{name}.*") if tag else []
    if tag and source not in known:
        raise TeacherError(
            f"opening teacher '{source}': timm {timm.__version__} has no weights '{tag}'"
            f" for '{name}'",
            code="timm-weights-unknown",
            advice=near_misses(source, known) or f"Available: {', '.join(known) or 'none'}.",
            source=source,
        )


def _resize_head(request: OpenRequest, module: nn.Module) -> None:
    """Replaces the head if another number of classes is requested."""
    wanted = request.num_classes
    if wanted is None or getattr(module, "num_classes", wanted) == wanted:
        return
    device = torch.device("meta") if request.meta else contextlib.nullcontext()
    with seeded(request.seed), device:
        module.reset_classifier(wanted)  # type: ignore[operator]
