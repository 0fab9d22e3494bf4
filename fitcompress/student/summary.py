"""Summarizes a plan for people and scripts: `plan.json`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, zip_longest

from fitcompress.distillation.pairs import HintPair, LayerMap
from fitcompress.distillation.regressors import Regressor
from fitcompress.events import Notice
from fitcompress.graph.analysis.blocks import Block
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.graph.program import Program
from fitcompress.recipe.recipe import Recipe
from fitcompress.records.measurements import NetworkCosts
from fitcompress.records.plan_summary import (
    FrozenSizes,
    PairSummary,
    PlanSummary,
    StageSide,
    StageSummary,
)
from fitcompress.student.plan import StudentPlan


def plan_notices(plan: StudentPlan | None) -> list[Notice]:
    if plan is None:
        return []
    notices = {}
    if plan.has_restored_norms:
        notices["norms-added"] = (
            "the teacher has no normalization layers: the student gets a batch norm after each"
            " convolution, so that it can be trained"
        )
    if plan.has_projected_outputs:
        notices["projection-added"] = (
            "the teacher's output has the width of its inner layers: the student gets a final"
            " linear layer of that width, so that the layers before it can be narrower"
        )
    unknown = [place.reason for place in plan.frozen if place.reason.startswith("no rule")]
    kept = [f"{reason}: the tensors it uses keep the teacher's width" for reason in unknown]
    coded = [*notices.items(), *(("operation-without-rule", message) for message in kept)]
    return [Notice(topic="plan", message=message, code=code) for code, message in coded]


def summarize_plan(
    maps: tuple[LayerMap, LayerMap],
    plan: StudentPlan | None,
    pairs: Sequence[HintPair],
    regressors: Sequence[tuple[Regressor, str]],
    notices: Sequence[Notice],
    recipe: Recipe,
) -> PlanSummary:
    """The summary of a planned student, or of a custom one (`plan` is None)."""
    teacher, student = maps
    costs = (
        (plan.teacher_costs, plan.costs)
        if plan
        else (measure_costs(teacher.program), measure_costs(student.program))
    )
    return PlanSummary(
        teacher=NetworkCosts(**costs[0].to_dict()),
        student=NetworkCosts(**costs[1].to_dict()),
        pairs=tuple(
            PairSummary(
                hint=pair.hint.name,
                guided=pair.guided.name,
                hint_shape=tuple(pair.hint.shape),
                guided_shape=tuple(pair.guided.shape),
                regressor=description,
            )
            for pair, (_, description) in zip(pairs, regressors, strict=True)
        ),
        learns_hints=recipe.learns_hints,
        stages=_stage_summaries(teacher, student),
        frozen=tuple(
            FrozenSizes(reason=place.reason, sizes=tuple(place.sizes), tensors=tuple(place.tensors))
            for place in (plan.frozen if plan else ())
        ),
        notices=tuple(notice.message for notice in notices),
        depth_mult=plan.depth_mult if plan else None,
        width_mult=plan.width_mult if plan else None,
        most_macs=plan.limits.macs if plan else None,
        init=recipe.student.init if plan else "own",
    )


def _stage_summaries(teacher: LayerMap, student: LayerMap) -> tuple[StageSummary, ...]:
    """The stages of both networks, side by side in order."""
    sides = zip_longest(_stages(teacher), _stages(student))
    return tuple(
        StageSummary(name=f"stage {number}", teacher=own, student=other)
        for number, (own, other) in enumerate(sides, 1)
    )


def _stages(side: LayerMap) -> list[StageSide]:
    stages = []
    for shape, members in groupby(side.spine, key=lambda block: block.shape):
        blocks = list(members)
        stages.append(
            StageSide(
                blocks=len(blocks),
                width=tuple(shape),
                params=sum(_block_params(side.program, block) for block in blocks),
                first=blocks[0].name,
                last=blocks[-1].name,
            )
        )
    return stages


def _block_params(program: Program, block: Block) -> int:
    names = {str(node.target) for node in block.nodes if node.op == "get_attr"}
    return sum(program.tensors[name].numel() for name in names & program.trainable)
