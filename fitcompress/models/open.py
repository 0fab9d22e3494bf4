"""Opens every kind of teacher as a program and an interface. Layer: teacher (graph, model).

A timm name, a TorchScript archive, a `.pt2`, a model folder of ours, `package.module:factory`, or a
module in memory. It knows nothing of data, students or training.
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
from fitcompress.models.assumed_inputs import OpenRequest
from fitcompress.models.factories import open_factory
from fitcompress.models.model import is_model_folder
from fitcompress.models.teacher import Teacher, captured, fingerprint_of, made_teacher, tensor_specs
from fitcompress.models.weight_files import file_kind
from fitcompress.recipe.schema import TeacherRecipe
from fitcompress.rundir import RunDir

__all__ = ["Teacher", "fingerprint_of", "open_teacher", "source_kind", "teacher_from_module"]


def open_teacher(
    recipe: TeacherRecipe,
    *,
    image_size: tuple[int, int] | None = None,
    num_classes: int | None = None,
    emit: Emit = ignore,
    meta: bool = False,
    allow_random: bool = False,
    seed: int = 0,
    normalised_as: InputSpec | None = None,
) -> Teacher:
    """The teacher that the recipe names; a run stands for its student.

    image_size: (H, W) of the data, used where the teacher runs at it and `recipe.input_size` is not
        set; else its own size.
    num_classes: gives the network a freshly initialised head of this size where it has another one.
    meta: timm and factory teachers get their shapes only, no weights (for plans).
    allow_random: weights that cannot be downloaded become random ones with a notice, instead of an
        error.
    normalised_as: images whose mean and deviation are taken where neither the source nor the recipe
        has any; None is ImageNet's, with a notice.

    Raises:
        TeacherError: it cannot be opened, its weights do not fit or cannot be had.
        CaptureError: it cannot be turned into a graph.
        RecipeError: the input settings do not fit together.
    """
    run = RunDir(Path(recipe.source))
    if run.is_run():
        recipe = replace(recipe, source=str(run.student_path))
    request = OpenRequest(
        recipe, image_size, num_classes, emit, meta, allow_random, seed, normalised_as
    )
    kind = source_kind(recipe.source)
    if recipe.inputs and kind in ("timm", "folder"):
        raise RecipeError(
            f"opening teacher '{recipe.source}': it says itself what it takes",
            advice="Drop --input; images of another size are --input-size.",
        )
    teacher = _OPENERS[kind](request)
    if num_classes is not None and teacher.num_classes not in (0, num_classes):
        raise TeacherError(
            f"opening teacher '{recipe.source}': it has {teacher.num_classes} classes, the data has"
            f" {num_classes}, and a teacher of kind '{kind}' cannot be given another head",
            advice="Use data with the teacher's classes, or a timm model or a factory as teacher.",
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
    """A teacher from a module in memory, which is left as it is.

    spec: the images that it takes, or one entry for each of its inputs.
    output_kind: what its outputs mean; None reads it from their shapes.

    Raises:
        CaptureError: it cannot be traced.
    """
    images = spec if isinstance(spec, InputSpec) else None
    tensors = [TensorSpec(shape=spec.shape)] if isinstance(spec, InputSpec) else spec
    program, output_names = captured(module, *tensors)
    return made_teacher(
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
    """What a teacher's name stands for: a key of the kinds in `Teacher.kind` other than "module".

    Raises:
        TeacherError: it is a file of weights alone, a file of no known kind, or a path that leads
            nowhere.
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
            advice="Check the path; a model on the Hugging Face hub is 'hf-hub:OWNER/NAME'.",
        )
    return "timm"


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


def _open_timm(request: OpenRequest) -> Teacher:
    from fitcompress.models.timm_zoo import open_timm  # takes seconds, and may not be there

    return open_timm(request)


_OPENERS: dict[str, Callable[[OpenRequest], Teacher]] = {
    "timm": _open_timm,
    "factory": open_factory,
    "torchscript": open_torchscript,
    "pt2": open_pt2,
    "folder": open_folder,
}
