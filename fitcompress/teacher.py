"""Opens every kind of teacher as a program and an interface. Layer: teacher (graph, model, checkpoints).

A timm name, a TorchScript archive, a `.pt2`, a model folder of ours, `package.module:factory`, or a module in memory. This is
the only file that imports timm's model factory; it knows nothing of data, students or training.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from torch import nn

from fitcompress.checkpoints import file_kind, load_weights, read_weights, refuse_unsafe_export
from fitcompress.errors import CaptureError, FitcompressError, RecipeError, TeacherError, near_misses
from fitcompress.events import Emit, Notice, ignore
from fitcompress.graph.capture import capture_exported, capture_module
from fitcompress.graph.cut import split_activation
from fitcompress.graph.program import Program, output_nodes, program_to_json, propagate_shapes
from fitcompress.graph.torchscript import capture_torchscript, load_torchscript
from fitcompress.hub import quiet_hub
from fitcompress.model import is_model_folder, load_model
from fitcompress.recipe import TeacherRecipe
from fitcompress.spec import InputSpec, Interface

__all__ = ["Teacher", "open_teacher", "source_kind", "teacher_from_module"]

Size = tuple[int, int, int]
"""Channels, height, width."""

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_COMMON_SIDES = (224, 32, 28, 64, 96, 128, 160, 192, 240, 256, 288, 299, 320, 384, 448, 512)
"""Tried in this order on an archive that does not say what it takes."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network to learn from."""

    name: str
    """What the user called it."""
    program: Program
    """Without a softmax or sigmoid at its end (`interface.activation` names it)."""
    interface: Interface
    kind: str
    """"timm", "factory", "module", "torchscript", "pt2" or "folder"."""
    weights_from: str
    """"pretrained", "random", "file" (a file of weights), "archive" (they came with it) or "factory"."""
    num_classes: int
    """Size of the last dimension of the first output."""
    fingerprint: str
    """Hash of the graph and all weights: two teachers with the same one say the same."""
    can_resize_classes: bool = False
    """Whether a copy with another number of classes can be made (`open_teacher(..., num_classes=K)`)."""


def open_teacher(
    recipe: TeacherRecipe,
    *,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    emit: Emit = ignore,
    meta: bool = False,
    allow_random: bool = False,
    seed: int = 0,
) -> Teacher:
    """The teacher that the recipe names.

    image_size: (H, W) of the data, used where the teacher runs at it and `recipe.input_size` is not set; else its own size.
    num_classes: gives the network a freshly initialised head of this size where it has another one.
    meta: timm and factory teachers get their shapes only, no weights (for plans).
    allow_random: weights that cannot be downloaded become random ones with a notice, instead of an error.

    Raises:
        TeacherError: it cannot be opened, its weights do not fit or cannot be had.
        CaptureError: it cannot be turned into a graph.
        RecipeError: the input settings do not fit together.
    """
    request = _Request(recipe, image_size, num_classes, emit, meta, allow_random, seed)
    kind = source_kind(recipe.source)
    teacher = _OPENERS[kind](request)
    if num_classes is not None and teacher.num_classes != num_classes:
        raise TeacherError(
            f"opening teacher '{recipe.source}': it has {teacher.num_classes} classes, the data has"
            f" {num_classes}, and a teacher of kind '{kind}' cannot be given another head",
            advice="Use data with the teacher's classes, or a timm model or a factory as teacher.",
        )
    return teacher


def teacher_from_module(
    module: nn.Module,
    spec: InputSpec,
    *,
    class_names: Sequence[str] = (),
    name: str = "",
) -> Teacher:
    """A teacher from a module in memory, which is left as it is. Raises CaptureError where it cannot be traced."""
    program = _captured(module, spec.shape)
    return _teacher(
        program,
        Interface(input=spec, class_names=tuple(class_names)),
        name=name or type(module).__name__,
        kind="module",
        weights_from="archive",
    )


def source_kind(source: str) -> str:
    """What a teacher's name stands for: a key of the kinds in `Teacher.kind` other than "module".

    Raises:
        TeacherError: it is a file of weights alone, a file of no known kind, or a path that leads nowhere.
    """
    path = Path(source)
    if path.is_dir():
        if is_model_folder(path):
            return "folder"
        raise TeacherError(
            f"opening teacher '{source}': the folder was not written by fitcompress",
            advice=f"For a folder that timm wrote, pass 'local-dir:{source}'.",
        )
    if path.is_file():
        return _kind_of_file(path)
    prefix = source.partition(":")[0]
    if ":" in source and prefix not in ("hf-hub", "hf_hub", "local-dir", "local_dir"):
        return "factory"
    if ":" not in source and ("/" in source or path.suffix in _FILE_SUFFIXES):
        raise TeacherError(
            f"opening teacher '{source}': there is no such file",
            advice="Check the path; a model on the Hugging Face hub is written 'hf-hub:OWNER/NAME'.",
        )
    return "timm"


@dataclass(frozen=True)
class _Request:
    """The arguments of `open_teacher`."""

    recipe: TeacherRecipe
    image_size: tuple[int, int] | None
    num_classes: int | None
    emit: Emit
    meta: bool
    allow_random: bool
    seed: int

    def notice(self, message: str) -> None:
        self.emit(Notice(topic="teacher", message=message))

    def sizes(self, own: Size) -> list[Size]:
        """The input sizes to try, the best first."""
        if self.recipe.input_size is not None:
            return [self.recipe.input_size]
        followed = [(own[0], *self.image_size)] if self.image_size is not None else []
        return list(dict.fromkeys([*followed, own]))


# --- timm ---------------------------------------------------------------------------------


def _open_timm(request: _Request) -> Teacher:
    recipe = request.recipe
    _refuse_unknown_name(recipe.source)
    module, weights_from = _timm_module(request)
    config = timm.data.resolve_model_data_config(module)
    own: Size = tuple(config["input_size"])
    program, size = _at_first_size(request, own, lambda size: _timm_at(request, module, own, size))
    spec = InputSpec(
        shape=size,
        mean=recipe.mean or tuple(config["mean"]),
        std=recipe.std or tuple(config["std"]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]) if size == own else 1.0,
    )
    return _teacher(
        program,
        Interface(input=_checked(spec), class_names=_class_names(recipe)),
        name=recipe.source,
        kind="timm",
        weights_from=weights_from,
        can_resize_classes=True,
    )


def _timm_module(request: _Request) -> tuple[nn.Module, str]:
    """The model at its own size with its weights, and where these came from."""
    recipe = request.recipe
    if recipe.weights is not None:
        module = _create_timm(request, pretrained=False)
        if not request.meta:
            _load_file(request, module, recipe.weights)
        return module, "file"
    if not recipe.pretrained or request.meta:
        return _create_timm(request, pretrained=False), "random"
    try:
        return _create_timm(request, pretrained=True), "pretrained"
    except _Unavailable as error:
        if not request.allow_random:
            raise TeacherError(
                f"opening teacher '{recipe.source}': its pretrained weights cannot be had ({error})",
                advice="Pass --teacher-weights FILE; --no-pretrained plans with random weights.",
            ) from error
        request.notice(
            f"the pretrained weights of '{recipe.source}' cannot be had ({error});"
            " the teacher starts from random weights"
        )
        return _create_timm(request, pretrained=False), "random"


def _timm_at(request: _Request, module: nn.Module, own: Size, size: Size) -> Program:
    """The program at an input size; a model whose size is built in is built again for another one."""
    is_fixed = bool(module.pretrained_cfg.get("fixed_input_size"))  # type: ignore[union-attr, operator]
    if size != own and is_fixed:
        if request.recipe.weights is not None and not request.meta:
            raise CaptureError(f"the weights of '{request.recipe.source}' are for inputs of {own}")
        pretrained = request.recipe.pretrained and not request.meta
        module = _create_timm(request, pretrained=pretrained, img_size=size[1:])
    _resize_head(request, module)
    return _captured(module, size, meta=request.meta)


def _create_timm(request: _Request, *, pretrained: bool, **options: Any) -> nn.Module:
    recipe = request.recipe
    if recipe.num_classes is not None:
        options["num_classes"] = recipe.num_classes
    if recipe.input_size is not None:
        options["in_chans"] = recipe.input_size[0]
    device = torch.device("meta") if request.meta else contextlib.nullcontext()
    with _seeded(request.seed), quiet_hub(), device:
        try:
            return timm.create_model(recipe.source, pretrained=pretrained, **options)
        except Exception as error:
            if pretrained or recipe.source.startswith(("hf-hub:", "hf_hub:")):
                raise _Unavailable(_unavailable_reason(error)) from error
            raise TeacherError(
                f"opening teacher '{recipe.source}': timm could not build it: {_first_line(error)}"
            ) from error


class _Unavailable(TeacherError):
    """Weights that cannot be downloaded."""


def _unavailable_reason(error: Exception) -> str:
    if isinstance(error, OSError) or "connection" in str(error).lower():
        return "no connection to the Hugging Face hub, and they are not in its cache"
    return _first_line(error)


def _refuse_unknown_name(source: str) -> None:
    name = source.partition(".")[0]
    if ":" not in source and not timm.is_model(name):
        raise TeacherError(
            f"opening teacher '{source}': timm {timm.__version__} has no model of that name",
            advice=near_misses(name, timm.list_models()) or "timm.list_models() lists them all.",
        )


def _resize_head(request: _Request, module: nn.Module) -> None:
    """Gives a timm model a fresh head when the data has another number of classes."""
    wanted = request.num_classes
    if wanted is None or getattr(module, "num_classes", wanted) == wanted:
        return
    device = torch.device("meta") if request.meta else contextlib.nullcontext()
    with _seeded(request.seed), device:
        module.reset_classifier(wanted)  # type: ignore[operator]


# --- factories ------------------------------------------------------------------------------


def _open_factory(request: _Request) -> Teacher:
    recipe = request.recipe
    factory = _imported(recipe.source)
    takes_classes = "num_classes" in _parameters(factory)
    module = _made(request, factory, recipe.num_classes if takes_classes else None)
    weights_from = "factory"
    if recipe.weights is not None:
        _load_file(request, module, recipe.weights)
        weights_from = "file"
    own = (_first_channels(module), *(request.image_size or (224, 224)))
    program, size = _at_first_size(request, own, lambda size: _captured(module, size))
    found = _num_classes(program)
    if request.num_classes not in (None, found) and takes_classes:
        resized = _made(request, factory, request.num_classes)
        _copy_fitting(module, resized)
        program = _captured(resized, size)
    return _teacher(
        program,
        Interface(input=_assumed_spec(request, size), class_names=_class_names(recipe)),
        name=recipe.source,
        kind="factory",
        weights_from=weights_from,
        can_resize_classes=takes_classes,
    )


def _imported(source: str) -> Callable[..., Any]:
    """The factory that `package.module:name` means; the current folder can be imported from."""
    module_name, _, name = source.partition(":")
    folder = str(Path.cwd())
    try:
        with _first_on_path(folder):
            module = importlib.import_module(module_name)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{source}': importing '{module_name}' failed: {_first_line(error)}",
            advice="Run from the folder that holds the module, or install it.",
        ) from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise TeacherError(
            f"opening teacher '{source}': '{module_name}' has no function '{name}'",
            advice=near_misses(name, [key for key in vars(module) if not key.startswith("_")]),
        )
    return factory


def _made(
    request: _Request, factory: Callable[..., Any], num_classes: int | None
) -> nn.Module:
    options = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with _seeded(request.seed):
            module = factory(**options)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': the factory failed: {_first_line(error)}"
        ) from error
    if not isinstance(module, nn.Module):
        raise TeacherError(
            f"opening teacher '{request.recipe.source}': expected the factory to return an"
            f" nn.Module, got {type(module).__name__}"
        )
    return module


def _parameters(factory: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):
        return set()


def _copy_fitting(source: nn.Module, target: nn.Module) -> None:
    """Copies every tensor whose name and shape agree; a head of another size keeps its fresh values."""
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


# --- files ------------------------------------------------------------------------------------


def _open_torchscript(request: _Request) -> Teacher:
    _refuse_weights(request)
    archive = load_torchscript(Path(request.recipe.source))
    program, size = _at_first_size(
        request, None, lambda size: capture_torchscript(archive, size), _archive_sizes(request, archive)
    )
    return _archive_teacher(request, program, size, "torchscript")


def _open_pt2(request: _Request) -> Teacher:
    _refuse_weights(request)
    path = Path(request.recipe.source)
    refuse_unsafe_export(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.load(path)
    except Exception as error:
        raise TeacherError(
            f"opening teacher '{path}': torch {torch.__version__} cannot read this exported program:"
            f" {_first_line(error)}",
            advice="Export it again with this version of torch.",
        ) from error
    program = capture_exported(exported)
    size = program.inputs[0].shape
    if len(size) != 3:
        raise TeacherError(
            f"opening teacher '{path}': expected an input of shape (N, C, H, W), got (N, {size})"
        )
    return _archive_teacher(request, program, (size[0], size[1], size[2]), "pt2")


def _open_folder(request: _Request) -> Teacher:
    _refuse_weights(request)
    model = load_model(Path(request.recipe.source))
    return _teacher(
        model.program,
        model.interface,
        name=request.recipe.source,
        kind="folder",
        weights_from="archive",
    )


def _archive_teacher(request: _Request, program: Program, size: Size, kind: str) -> Teacher:
    return _teacher(
        program,
        Interface(input=_assumed_spec(request, size), class_names=_class_names(request.recipe)),
        name=request.recipe.source,
        kind=kind,
        weights_from="archive",
    )


def _archive_sizes(request: _Request, archive: nn.Module) -> list[Size]:
    """The sizes that an archive may take: the one asked for, that of the data, then common ones."""
    if request.recipe.input_size is not None:
        return [request.recipe.input_size]
    channels = _first_channels(archive)
    followed = [(channels, *request.image_size)] if request.image_size is not None else []
    return [*followed, *((channels, side, side) for side in _COMMON_SIDES)]


def _refuse_weights(request: _Request) -> None:
    if request.recipe.weights is not None:
        raise RecipeError(
            f"opening teacher '{request.recipe.source}': it brings its own weights, so"
            f" '{request.recipe.weights}' cannot be loaded into it",
            advice="Drop --teacher-weights.",
        )


_FILE_SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".bin", ".safetensors", ".th", ".ckpt", ".onnx")


def _kind_of_file(path: Path) -> str:
    kind = file_kind(path)
    if kind in ("torchscript", "pt2"):
        return kind
    if kind in ("safetensors", "weights"):
        raise TeacherError(
            f"opening teacher '{path}': the file holds weights alone, not a model",
            advice=f"Name the model and pass the file beside it: --teacher resnet50"
            f" --teacher-weights {path}.",
        )
    raise TeacherError(
        f"opening teacher '{path}': expected a TorchScript archive or a .pt2, got a file of an"
        " unknown kind",
        advice="Save the model with torch.jit.trace(...).save(FILE) or torch.export.save.",
    )


# --- common -------------------------------------------------------------------------------------

_OPENERS: dict[str, Callable[[_Request], Teacher]] = {
    "timm": _open_timm,
    "factory": _open_factory,
    "torchscript": _open_torchscript,
    "pt2": _open_pt2,
    "folder": _open_folder,
}


def _teacher(program: Program, interface: Interface, **facts: Any) -> Teacher:
    program, activation = split_activation(program)
    return Teacher(
        program=program,
        interface=replace(interface, activation=activation or interface.activation),
        num_classes=_num_classes(program),
        fingerprint=_fingerprint(program),
        **facts,
    )


def _at_first_size(
    request: _Request,
    own: Size | None,
    capture: Callable[[Size], Program],
    sizes: Sequence[Size] = (),
) -> tuple[Program, Size]:
    """The program at the first size that it can be captured at and runs at."""
    sizes = sizes or request.sizes(own or (3, 224, 224))
    first_error: FitcompressError | None = None
    for size in sizes:
        try:
            return capture(size), size
        except CaptureError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error


def _captured(module: nn.Module, size: Size, *, meta: bool = False) -> Program:
    """The program of a module at an input size, checked by running its shapes at two batch sizes."""
    example = torch.zeros((2, *size), device="meta" if meta else "cpu")
    program = capture_module(module, (example,))
    for batch_size in (1, 3):
        try:
            propagate_shapes(program, batch_size)
        except RuntimeError as error:
            raise CaptureError(
                f"capturing {type(module).__name__}: it does not run on a batch of {batch_size}:"
                f" {_first_line(error)}"
            ) from error
    return program


def _num_classes(program: Program) -> int:
    return int(propagate_shapes(program)[output_nodes(program.graph)[0].name][-1])


def _assumed_spec(request: _Request, size: Size) -> InputSpec:
    """The input of a network that does not say how it wants its images."""
    recipe, is_rgb = request.recipe, size[0] == 3
    if recipe.mean is None or recipe.std is None:
        request.notice(
            f"'{recipe.source}' does not say how its inputs are normalised; ImageNet's mean and"
            " standard deviation are assumed (--mean, --std)"
        )
    mean = _IMAGENET_MEAN if is_rgb else (sum(_IMAGENET_MEAN) / 3,) * size[0]
    std = _IMAGENET_STD if is_rgb else (sum(_IMAGENET_STD) / 3,) * size[0]
    return _checked(InputSpec(shape=size, mean=recipe.mean or mean, std=recipe.std or std))


def _checked(spec: InputSpec) -> InputSpec:
    channels = spec.shape[0]
    if len(spec.mean) != channels or len(spec.std) != channels or min(spec.std) <= 0:
        raise RecipeError(
            f"reading the input settings: expected {channels} means and {channels} positive"
            f" standard deviations, got {list(spec.mean)} and {list(spec.std)}"
        )
    return spec


def _class_names(recipe: TeacherRecipe) -> tuple[str, ...]:
    if recipe.class_map is None:
        return ()
    try:
        text = Path(recipe.class_map).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"reading class names from '{recipe.class_map}': {_first_line(error)}"
        ) from error
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _load_file(request: _Request, module: nn.Module, weights: str) -> None:
    if load_weights(module, read_weights(Path(weights)), weights):
        request.notice(
            f"no name in '{weights}' is known to '{request.recipe.source}'; its tensors were taken"
            " in order, since every shape fits"
        )


def _first_channels(module: nn.Module) -> int:
    """What the first convolution takes, or 3."""
    for value in module.state_dict().values():
        if value.ndim == 4:
            return int(value.shape[1]) if value.shape[1] <= 4 else 3
    return 3


def _fingerprint(program: Program) -> str:
    digest = hashlib.sha256(json.dumps(program_to_json(program), sort_keys=True).encode())
    for name in sorted(program.tensors):
        value = program.tensors[name]
        digest.update(name.encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
