"""Plans a run: the student, the hint pairs and the summary. Uses no data and trains nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fitcompress.distillation.pairs import HintPair, LayerMap, choose_pairs, map_layers
from fitcompress.distillation.regressors import Regressor, make_regressor
from fitcompress.errors import PlanError
from fitcompress.events import Emit
from fitcompress.graph.analysis.blocks import find_blocks
from fitcompress.graph.axes.trace import AxisTrace
from fitcompress.graph.program import Program
from fitcompress.interface import Interface
from fitcompress.models.model import Model, make_model
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.recipe import Recipe
from fitcompress.recipe.schema import HintRecipe
from fitcompress.records.plan_summary import PlanSummary
from fitcompress.student.custom_student import open_custom_student
from fitcompress.student.init import initial_tensors, random_program
from fitcompress.student.plan import StudentPlan
from fitcompress.student.sizing import plan_from_recipe
from fitcompress.student.summary import plan_notices, summarize_plan

__all__ = ["Planned", "make_baseline", "make_regressors", "plan_run"]


@dataclass(frozen=True)
class Planned:
    """The networks of a run and the hint pairs between them."""

    teacher: Model
    teacher_fingerprint: str
    num_classes: int
    """Scores per row of the teacher's first output; 0 if its rows are not scores."""
    student: Model
    plan: StudentPlan | None
    """None for a custom student."""
    inherits_statistics: bool
    """Whether the student starts with batch norm statistics of a wider or shallower network."""
    pairs: tuple[HintPair, ...]
    summary: PlanSummary
    """`plan --json`: see `summarize_plan`."""

    @property
    def hint_nodes(self) -> list[str]:
        """The nodes of the teacher's program that the hints are the values of."""
        return [pair.hint.node for pair in self.pairs]

    @property
    def guided_nodes(self) -> list[str]:
        """The nodes of the student's program that the guided layers are the values of."""
        return [pair.guided.node for pair in self.pairs]


def plan_run(
    teacher: Teacher,
    recipe: Recipe,
    *,
    emit: Emit,
    meta: bool = False,
    before: tuple[float, float] | None = None,
) -> Planned:
    """Plans the student of a teacher and the hint pairs between them.

    meta: leaves the student's tensors on the meta device, for plans.
    before: see `plan_from_recipe`.

    Raises:
        PlanError: no student or no hint pair satisfies the recipe.
        LayerError: a named layer is unknown or ambiguous.
        CaptureError, TeacherError: a custom student cannot be opened.
    """
    if recipe.student.source:
        plan = None
        program, interface = open_custom_student(teacher, recipe, emit, meta)
    else:
        plan = plan_from_recipe(
            teacher.program, teacher.interface, recipe.student, emit=emit, before=before
        )
        program, interface = plan.program, teacher.interface
        if not meta:
            tensors = initial_tensors(plan, init=recipe.student.init, seed=recipe.run.seed)
            program = replace(program, tensors=tensors)
    trace = plan.trace if plan else None  # it contains the nodes of both networks
    teacher_model, teacher_map = _mapped(teacher.program, teacher.interface, trace)
    student, student_map = _mapped(program, interface, trace)
    maps = teacher_map, student_map
    pairs = _pairs(maps, recipe.hints, teacher.num_classes)
    regressors = make_regressors(pairs, recipe.hints)
    notices = plan_notices(plan)
    for notice in notices:
        emit(notice)
    summary = summarize_plan(maps, plan, pairs, regressors, notices, recipe)
    inherits = plan is not None and recipe.student.init == "inherit" and _has_other_shapes(plan)
    return Planned(
        teacher=teacher_model,
        teacher_fingerprint=teacher.fingerprint,
        num_classes=teacher.num_classes,
        student=student,
        plan=plan,
        inherits_statistics=inherits,
        pairs=pairs,
        summary=summary,
    )


def _mapped(
    program: Program, interface: Interface, trace: AxisTrace | None
) -> tuple[Model, LayerMap]:
    """The model of a program and the map of its layers."""
    spine = find_blocks(program)
    model = make_model(program, interface, spine)
    return model, map_layers(program, model.network, trace, spine)


def make_baseline(planned: Planned, seed: int) -> Model:
    """The student with random weights, those that a randomly initialized student starts from. A
    custom student keeps the weights that it came with.
    """
    program = random_program(planned.plan, seed) if planned.plan else planned.student.program
    return make_model(program, planned.student.interface)


def _has_other_shapes(plan: StudentPlan) -> bool:
    """Whether any tensor of the student differs from its teacher's in name or shape; if none does,
    the student computes the same.
    """
    sides = (plan.teacher.tensors, plan.program.tensors)
    shapes = [{name: value.shape for name, value in side.items()} for side in sides]
    return shapes[0] != shapes[1]


def _pairs(
    maps: tuple[LayerMap, LayerMap], recipe: HintRecipe, num_classes: int
) -> tuple[HintPair, ...]:
    teacher, student = maps
    pairs = choose_pairs(
        teacher, student, num_pairs=recipe.num_pairs, hints=recipe.hint, guided=recipe.guided
    )
    if recipe.target != "labels":
        return pairs
    if not num_classes:
        raise PlanError(
            "using labels as hints: the teacher's outputs are not classes",
            code="label-hints-without-classes",
            advice="Drop hints.target=labels.",
        )
    return tuple(
        replace(
            pair,
            hint=replace(pair.hint, shape=(num_classes,)),
            hint_channel_axis=None,
            hint_grid=None,
        )
        for pair in pairs
    )


def make_regressors(pairs: Sequence[HintPair], recipe: HintRecipe) -> list[tuple[Regressor, str]]:
    """A regressor and its description for each pair."""
    return [
        make_regressor(
            pair.hint.shape,
            pair.guided.shape,
            non_negative_hint=pair.is_non_negative and _is_raw_hint(recipe),
            when_equal=recipe.regressor_when_equal,
            hint_channel_axis=pair.hint_channel_axis,
            guided_channel_axis=pair.guided_channel_axis,
            hint_grid=pair.hint_grid,
            guided_grid=pair.guided_grid,
        )
        for pair in pairs
    ]


def _is_raw_hint(recipe: HintRecipe) -> bool:
    """Whether hints are the teacher's values, which are non-negative after a ReLU."""
    return recipe.target in ("teacher", "shuffled") and not recipe.standardise
