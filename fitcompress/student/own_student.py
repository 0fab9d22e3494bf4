"""A student that the user brings: opened, and checked against the teacher's outputs."""

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


def open_student(
    teacher: Teacher, recipe: Recipe, emit: Emit, meta: bool
) -> tuple[Program, Interface]:
    """A student of the user's own, with the teacher's number of classes; a timm name starts from
    random weights.
    """
    name = recipe.student.source or ""
    try:
        opened = _opened_where_it_runs(name, teacher, recipe, emit, meta)
    except (TeacherError, CaptureError) as error:
        cause = error.message.removeprefix(f"opening teacher '{name}': ")
        raise error.reworded(f"opening student '{name}': {cause}") from error
    interface = replace(opened.interface, class_names=teacher.interface.class_names)
    programs = (teacher.program, opened.program)
    outputs = [[shape[1:] for shape in output_shapes(program)] for program in programs]
    if outputs[0] != outputs[1]:
        raise PlanError(
            f"student '{name}' has outputs of shape {outputs[1]}, the teacher {outputs[0]}",
            advice="name a student with the teacher's outputs",
        )
    return opened.program, interface


def _opened_where_it_runs(
    name: str, teacher: Teacher, recipe: Recipe, emit: Emit, meta: bool
) -> Teacher:
    """The student at the input size that was asked for the teacher, else near the teacher's own,
    else at the student's own: each network has images made ready for it. They are normalised as the
    teacher's where the student's source does not say how.
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
    for asked, image_size in dict.fromkeys(sizes):
        try:
            return open_teacher(
                replace(source, input_size=asked),
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
