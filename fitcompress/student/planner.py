"""From a teacher to the networks of a run: the student, the hint pairs, and the plan to read.

Layer: pipeline. Knows no data and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import nn

from fitcompress.student.latency_search import student_of
from fitcompress.errors import CaptureError, PlanError, TeacherError
from fitcompress.events import Emit, Notice
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.student.init import initial_tensors
from fitcompress.graph.lift import build_network
from fitcompress.student.plan import StudentPlan
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.graph.analysis.blocks import Block, find_blocks
from fitcompress.graph.axes.trace import AxisTrace
from fitcompress.distillation.pairs import HintPair, LayerMap, choose_pairs, map_layers, node_blocks
from fitcompress.models.model import Model
from fitcompress.recipe.recipe import HintRecipe, Recipe
from fitcompress.distillation.regressors import Regressor, make_regressor
from fitcompress.interface import Interface
from fitcompress.models.open import open_teacher
from fitcompress.models.teacher import Teacher

__all__ = ["Planned", "make_model", "make_regressors", "plan_run", "untaught", "with_state"]


@dataclass(frozen=True)
class Planned:
    """What a run will train."""

    teacher: Model
    student: Model
    pairs: tuple[HintPair, ...]
    summary: dict[str, Any]
    """`plan --json`: see `_summarise`."""
    inherits: bool
    plan: StudentPlan | None
    """None for a student of the user's own."""
    """Whether the student starts with batch norms that were estimated for other widths."""


def make_model(program: Program, interface: Interface) -> Model:
    """The program as a network whose blocks can be hooked, with its interface."""
    return _with_blocks(program, interface, find_blocks(program))


def _with_blocks(program: Program, interface: Interface, spine: Sequence[Block]) -> Model:
    blocks = node_blocks(spine)
    return Model(program, build_network(program, blocks), interface, blocks)


def with_state(model: Model, state: nn.Module) -> Program:
    """The model's program with the tensors that a trained network of it holds, on the CPU."""
    trained = state.state_dict()
    tensors = {
        name: trained[name].detach().cpu() if name in trained else value
        for name, value in model.program.tensors.items()
    }
    return replace(model.program, tensors=tensors)


def plan_run(
    teacher: Teacher,
    recipe: Recipe,
    *,
    emit: Emit,
    meta: bool = False,
    before: tuple[float, float] | None = None,
) -> Planned:
    """The student and the hint pairs for a teacher.

    meta: the student gets shapes only, no weights.
    before: see `budgets.student_of`.

    Raises:
        PlanError: no student or no pair can be planned as asked.
        LayerError: a layer that was named is unknown or ambiguous.
        TeacherError: a student of the user's own cannot be opened, or has other outputs.
    """
    if recipe.student.source:
        plan = None
        program, interface = _open_student(teacher, recipe, emit, meta)
    else:
        plan = student_of(
            teacher.program,
            teacher.interface,
            recipe.student,
            emit=emit,
            before=before,
        )
        program, interface = plan.program, teacher.interface
        if not meta:
            tensors = initial_tensors(plan, init=recipe.student.init, seed=recipe.run.seed)
            program = replace(program, tensors=tensors)
    trace = plan.trace if plan else None  # of the deepened teacher: both networks' nodes are in it
    teacher_model, teacher_map = _mapped(teacher.program, teacher.interface, trace)
    student, student_map = _mapped(program, interface, trace)
    maps = teacher_map, student_map
    pairs = _pairs(maps, recipe.hints, teacher.num_classes)
    regressors = make_regressors(pairs, recipe.hints)
    notices = _notices(plan)
    for notice in notices:
        emit(Notice(topic="plan", message=notice))
    summary = _summarise(maps, plan, pairs, regressors, notices, recipe)
    inherits = recipe.student.init == "inherit" and plan is not None and _is_changed(plan)
    return Planned(teacher_model, student, pairs, summary, inherits, plan)


def _mapped(
    program: Program, interface: Interface, trace: AxisTrace | None
) -> tuple[Model, LayerMap]:
    """The program's model and the map of its layers."""
    spine = find_blocks(program)
    model = _with_blocks(program, interface, spine)
    return model, map_layers(program, model.network, trace, spine)


def untaught(planned: Planned, seed: int) -> Model:
    """The student as it is without anything of the teacher's: with random weights, which a student
    of random first weights shares. One of the user's own keeps the weights it came with.
    """
    program = planned.student.program
    if planned.plan is not None:
        tensors = initial_tensors(planned.plan, init="random", seed=seed)
        program = replace(program, tensors=tensors)
    return make_model(program, planned.student.interface)


def _is_changed(plan: StudentPlan) -> bool:
    """Whether the student has other tensors than its teacher: else it computes the same."""
    sides = (plan.teacher.tensors, plan.program.tensors)
    shapes = [{name: value.shape for name, value in side.items()} for side in sides]
    return shapes[0] != shapes[1]


def _open_student(
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
        raise type(error)(f"opening student '{name}': {cause}", advice=error.advice) from error
    interface = replace(opened.interface, class_names=teacher.interface.class_names)
    outputs = [_output_shapes(program) for program in (teacher.program, opened.program)]
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
                normalised_as=images,
            )
        except CaptureError as error:
            first_error = first_error or error
    assert first_error is not None, name
    raise first_error


def _output_shapes(program: Program) -> list[tuple[int, ...]]:
    shapes = propagate_shapes(program, 2)
    return [tuple(shapes[node.name][1:]) for node in output_nodes(program.graph)]


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
            "learning labels as hints: the teacher's outputs are not classes",
            advice="Leave out hints.target=labels.",
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
    """Whether what is learnt are the teacher's own values: all else may be negative."""
    return recipe.target in ("teacher", "shuffled") and not recipe.standardise


def _notices(plan: StudentPlan | None) -> list[str]:
    if plan is None:
        return []
    notices = []
    if plan.has_restored_norms:
        notices.append(
            "the teacher has no normalisation (folded away, or never there): the student gets a"
            " batch norm behind each convolution, so that it can be trained"
        )
    if plan.has_projected_outputs:
        notices.append(
            "the teacher's output is as wide as its inside: the student gets a linear map to that"
            " width at its end, so that everything before it can be thinner"
        )
    unknown = [place.reason for place in plan.frozen if place.reason.startswith("no rule")]
    notices.extend(f"{reason}: what it touches keeps the teacher's width" for reason in unknown)
    return notices


def _summarise(
    maps: tuple[LayerMap, LayerMap],
    plan: StudentPlan | None,
    pairs: Sequence[HintPair],
    regressors: Sequence[tuple[Regressor, str]],
    notices: list[str],
    recipe: Recipe,
) -> dict[str, Any]:
    """The plan for people and scripts, ready for JSON."""
    teacher, student = maps
    costs = (
        (plan.teacher_costs, plan.costs)
        if plan
        else (measure_costs(teacher.program), measure_costs(student.program))
    )
    return {
        "teacher": costs[0].to_dict(),
        "student": costs[1].to_dict(),
        "pairs": [
            {
                "hint": pair.hint.name,
                "guided": pair.guided.name,
                "hint_shape": list(pair.hint.shape),
                "guided_shape": list(pair.guided.shape),
                "regressor": description,
            }
            for pair, (_, description) in zip(pairs, regressors, strict=True)
        ],
        "learns_hints": recipe.learns_hints,
        "stages": _stage_rows(teacher, student),
        "frozen": [
            {"reason": place.reason, "sizes": list(place.sizes), "tensors": list(place.tensors)}
            for place in (plan.frozen if plan else ())
        ],
        "notices": notices,
        "depth_mult": plan.depth_mult if plan else None,
        "width_mult": plan.width_mult if plan else None,
        "most_macs": plan.limits.macs if plan else None,
        "init": recipe.student.init if plan else "own",
    }


def _stage_rows(teacher: LayerMap, student: LayerMap) -> list[dict[str, Any]]:
    """Both networks stage by stage (blocks of one output shape), side by side by their order."""
    sides = [_stages(side) for side in (teacher, student)]
    count = max(map(len, sides))
    rows = []
    for number in range(count):
        own = [side[number] if number < len(side) else None for side in sides]
        rows.append({"name": f"stage {number + 1}", "teacher": own[0], "student": own[1]})
    return rows


def _stages(side: LayerMap) -> list[dict[str, Any]]:
    stages = []
    for shape, members in groupby(side.spine, key=lambda block: block.shape):
        blocks = list(members)
        stages.append(
            {
                "blocks": len(blocks),
                "width": list(shape),
                "params": sum(_block_params(side.program, block) for block in blocks),
                "first": blocks[0].name,
                "last": blocks[-1].name,
            }
        )
    return stages


def _block_params(program: Program, block: Block) -> int:
    names = {str(node.target) for node in block.nodes if node.op == "get_attr"}
    return sum(program.tensors[name].numel() for name in names & program.trainable)
