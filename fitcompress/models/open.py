"""Opens a teacher from any source.

A source is a timm model, a TorchScript archive, a `.pt2` file, a model folder, a factory
`package.module:function`, or a module in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from fitcompress.errors import RecipeError, TeacherError
from fitcompress.events import Emit, ignore
from fitcompress.interface import InputSpec, Interface, OutputKind, TensorSpec
from fitcompress.models.archives import open_folder, open_pt2, open_torchscript
from fitcompress.models.factories import open_factory
from fitcompress.models.model import is_model_folder
from fitcompress.models.open_request import OpenRequest
from fitcompress.models.teacher import Teacher, capture_for_inputs, make_teacher, tensor_specs
from fitcompress.models.weight_files import file_kind
from fitcompress.recipe.schema import TeacherRecipe
from fitcompress.rundir import RunDir

__all__ = ["open_teacher", "source_kind", "teacher_from_module"]


def open_teacher(
    recipe: TeacherRecipe,
    *,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    emit: Emit = ignore,
    meta: bool = False,
    allow_random: bool = False,
    seed: int = 0,
    normalized_as: InputSpec | None = None,
) -> Teacher:
    """Opens the teacher of a recipe; for a run directory, its student.

    image_size: (H, W) of the data. Used as input size if the teacher runs at it and
        `recipe.input_size` is not set; otherwise the teacher's own size is used.
    num_classes: if the teacher has another number of classes, it gets a new, randomly initialized
        head.
    meta: opens timm models and factories without weights, for plans.
    allow_random: uses random weights, with a notice, if pretrained weights cannot be downloaded.
    normalized_as: input whose mean and standard deviation are used if neither the source nor the
        recipe defines them; None stands for ImageNet's, with a notice.

    Raises:
        TeacherError: the teacher cannot be opened, or its weights do not match or are unavailable.
        CaptureError: the teacher cannot be captured as a graph.
        RecipeError: the input settings are inconsistent.
    """
    run = RunDir(Path(recipe.source))
    if run.is_run():
        recipe = replace(recipe, source=str(run.student_path))
    request = OpenRequest(
        recipe, image_size, num_classes, emit, meta, allow_random, seed, normalized_as
    )
    kind = source_kind(recipe.source)
    if recipe.inputs and kind in ("timm", "folder"):
        raise RecipeError(
            f"opening teacher '{recipe.source}': --input does not apply to this kind of teacher",
            code="inputs-not-applicable",
            advice="Drop --input. To set the size of images, use --input-size.",
            source=recipe.source,
            kind=kind,
        )
    teacher = _OPENERS[kind](request)
    if num_classes is not None and teacher.num_classes not in (0, num_classes):
        raise TeacherError(
            f"opening teacher '{recipe.source}': expected {num_classes} classes, got"
            f" {teacher.num_classes}; the head of a teacher of kind '{kind}' cannot be replaced",
            code="teacher-head-fixed",
            advice="Use data with the teacher's classes, or pass a timm model or a factory.",
            source=recipe.source,
            kind=kind,
            expected=num_classes,
            got=teacher.num_classes,
        )
    return teacher


def teacher_from_module(
    module: nn.Module,
    spec: InputSpec | Sequence[TensorSpec],
    *,
    class_names: Sequence[str] = (),
    output_kind: OutputKind | None = None,
    name: str = "",
) -> Teacher:
    """A teacher from a module in memory. The module is not modified.

    spec: its image input, or a spec for each input of another model.
    output_kind: meaning of its outputs; None infers it from their shapes.

    Raises:
        CaptureError: the module cannot be captured as a graph.
    """
    images = spec if isinstance(spec, InputSpec) else None
    tensors = [TensorSpec(shape=spec.shape)] if isinstance(spec, InputSpec) else spec
    program, output_names = capture_for_inputs(module, *tensors)
    return make_teacher(
        program,
        Interface(
            input=images,
            inputs=() if images else tensor_specs(program),
            class_names=tuple(class_names),
            output_names=output_names,
            output_kind=output_kind,
        ),
        name=name or type(module).__name__,
        kind="module",
        weights_from="archive",
    )


def source_kind(source: str) -> str:
    """The `Teacher.kind` of a source, without opening it.

    Raises:
        TeacherError: the source is a path that does not exist, or a file or folder of another kind.
    """
    path = Path(source)
    if path.is_dir():
        if is_model_folder(path):
            return "folder"
        raise TeacherError(
            f"opening teacher '{source}': the folder was not written by fitcompress",
            code="model-folder-foreign",
            advice=f"For a folder that timm wrote, pass 'local-dir:{source}'.",
            folder=source,
        )
    if path.is_file():
        return _kind_of_file(path)
    prefix = source.partition(":")[0]
    if ":" in source and prefix not in ("hf-hub", "hf_hub", "local-dir", "local_dir"):
        return "factory"
    if ":" not in source and ("/" in source or path.suffix in _FILE_SUFFIXES):
        raise TeacherError(
            f"opening teacher '{source}': there is no such file",
            code="no-such-file",
            advice="Check the path. For a model on the Hugging Face hub, pass 'hf-hub:OWNER/NAME'.",
            path=source,
        )
    return "timm"


_FILE_SUFFIXES = (".pt", ".pth", ".pt2", ".ts", ".bin", ".safetensors", ".th", ".ckpt", ".onnx")


def _kind_of_file(path: Path) -> str:
    kind = file_kind(path)
    if kind in ("torchscript", "pt2"):
        return kind
    if kind in ("safetensors", "weights"):
        raise TeacherError(
            f"opening teacher '{path}': expected a model, got a file of weights",
            code="weights-without-model",
            advice="Pass the model's name and the file, such as `--teacher resnet50"
            f" --teacher-weights {path}`.",
            path=str(path),
        )
    raise TeacherError(
        f"opening teacher '{path}': expected a TorchScript archive or a .pt2 file, got an unknown"
        " format",
        code="model-format-unknown",
        advice="Save the model with torch.jit.trace(...).save(FILE) or torch.export.save.",
        path=str(path),
    )


def _open_timm(request: OpenRequest) -> Teacher:
    from fitcompress.models.timm_zoo import open_timm  # importing timm takes seconds

    return open_timm(request)


_OPENERS: dict[str, Callable[[OpenRequest], Teacher]] = {
    "timm": _open_timm,
    "factory": open_factory,
    "torchscript": open_torchscript,
    "pt2": open_pt2,
    "folder": open_folder,
}
