"""Custom students: models of the user that are trained instead of a derived student."""

from __future__ import annotations

from dataclasses import replace

from fitcompress.errors import CaptureError, PlanError, TeacherError
from fitcompress.events import Emit
from fitcompress.graph.program import Program
from fitcompress.graph.shapes import output_shapes
from fitcompress.interface import Interface
from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe

__all__ = ["open_custom_student"]


def open_custom_student(
    teacher: Teacher, recipe: Recipe, emit: Emit, meta: bool
) -> tuple[Program, Interface]:
    """Opens `student.source` with the teacher's number of classes; timm models get random weights.

    Raises:
        PlanError: the outputs have other shapes than the teacher's.
        CaptureError, TeacherError: the student cannot be opened.
    """
    name = recipe.student.source or ""
    try:
        opened = _open_at_supported_size(name, teacher, recipe, emit, meta)
    except (TeacherError, CaptureError) as error:
        cause = error.message.removeprefix(f"opening teacher '{name}': ")
        raise error.reworded(f"opening student '{name}': {cause}") from error
    interface = replace(opened.interface, class_names=teacher.interface.class_names)
    programs = (teacher.program, opened.program)
    outputs = [[shape[1:] for shape in output_shapes(program)] for program in programs]
    if outputs[0] != outputs[1]:
        raise PlanError(
            f"opening student '{name}': expected the teacher's output shapes {outputs[0]}, got"
            f" {outputs[1]}",
            code="student-outputs-mismatch",
            advice="Choose a student whose outputs have the shapes of the teacher's.",
            source=name,
            expected=[list(shape) for shape in outputs[0]],
            got=[list(shape) for shape in outputs[1]],
        )
    return opened.program, interface


def _open_at_supported_size(
    name: str, teacher: Teacher, recipe: Recipe, emit: Emit, meta: bool
) -> Teacher:
    """Opens the student at the first input size that it supports.

    Sizes are tried in this order: the one requested for the teacher, the teacher's own, and the
    student's own. The student's images are normalized like the teacher's if its source does not
    define how.
    """
    source = replace(
        recipe.teacher,
        source=name,
        weights=None,
        pretrained=False,
        num_classes=None,
        mean=None,
        std=None,
    )
    images = teacher.interface.input
    near = None if images is None else images.shape[1:]
    sizes = [(source.input_size, near), (None, near), (None, None)]
    first_error: CaptureError | None = None
    for requested, image_size in dict.fromkeys(sizes):
        try:
            return open_teacher(
                replace(source, input_size=requested),
                image_size=image_size,
                num_classes=teacher.num_classes or None,
                emit=emit,
                meta=meta,
                seed=recipe.run.seed,
                normalized_as=images,
            )
        except CaptureError as error:
            first_error = first_error or error
    assert first_error is not None, name
    raise first_error
