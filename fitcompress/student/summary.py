"""The plan of a run for people and scripts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fitcompress.distillation.pairs import HintPair, LayerMap
from fitcompress.distillation.regressors import Regressor
from fitcompress.graph.analysis.blocks import Block
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.graph.program import Program
from fitcompress.recipe.recipe import Recipe
from fitcompress.student.plan import StudentPlan


def plan_notices(plan: StudentPlan | None) -> list[str]:
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


def summarize_plan(
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
