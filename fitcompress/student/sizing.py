"""The student of a recipe: with its multipliers, or the largest within its targets."""

from __future__ import annotations

from dataclasses import replace

from fitcompress.events import Emit, Notice
from fitcompress.graph.program import Program
from fitcompress.interface import Interface
from fitcompress.recipe.schema import StudentRecipe
from fitcompress.recipe.targets import Target
from fitcompress.student.latency_search import plan_within_latency
from fitcompress.student.plan import StudentPlan, plan_student, plan_within
from fitcompress.student.width_search import CLOSE, Fit, Limits, Tally, tally_of

__all__ = ["plan_from_recipe"]


def plan_from_recipe(
    teacher: Program,
    interface: Interface,
    recipe: StudentRecipe,
    *,
    emit: Emit,
    before: tuple[float, float] | None = None,
) -> StudentPlan:
    """The student with the recipe's multipliers, or the largest one within its targets.

    before: depth multiplier and limit of multiply-adds that an earlier latency search found; with
        them nothing is measured.

    Raises:
        PlanError: even the smallest student exceeds a target.
    """
    targets = recipe.targets
    if not targets:
        return plan_student(teacher, depth_mult=recipe.depths[0], width_mult=recipe.width)
    limits = _limits(targets, tally_of(teacher))
    if "latency" not in targets:
        plan, fit = plan_within(teacher, limits, recipe.depths)
        emit(Notice(topic="plan", message=_describe(plan, fit, limits), code="targets-used"))
        return plan
    if before is not None:
        return plan_within(teacher, replace(limits, macs=before[1]), before[:1])[0]
    return plan_within_latency(teacher, interface, recipe, targets["latency"], limits, emit)


def _limits(targets: dict[str, Target], teacher: Tally) -> Limits:
    def limit(kind: str, of_teacher: float) -> float | None:
        return targets[kind].limit(of_teacher) if kind in targets else None

    flops = limit("flops", 2 * teacher.macs)
    macs = [m for m in (limit("macs", teacher.macs), flops and flops / 2) if m is not None]
    return Limits(
        limit("params", teacher.params), min(macs, default=None), limit("size", teacher.size)
    )


def _describe(plan: StudentPlan, fit: Fit, limits: Limits) -> str:
    text = (
        f"the largest student within the targets has depth-mult {plan.depth_mult:g} and width-mult"
        f" {plan.width_mult:.3g} or more, and uses {fit.share:.1%} of the tightest target"
    )
    if fit.share < CLOSE and fit.above is not None:
        sizes = [_describe_tally(tally, limits) for tally in (fit.tally, fit.above)]
        text += f"; the closest possible students have {sizes[0]} and {sizes[1]}"
    return text


def _describe_tally(tally: Tally, limits: Limits) -> str:
    texts = {
        "params": f"{tally.params:,} parameters",
        "macs": f"{2 * tally.macs:,} FLOPs",
        "size": f"{tally.size:,} bytes",
    }
    return ", ".join(texts[kind] for kind in texts if getattr(limits, kind) is not None)
