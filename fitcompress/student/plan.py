"""The plan of a student: its program without weights, its origin and its costs.

Planning is deterministic and reads no tensor values; `init` turns a plan into weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf

from fitcompress.errors import PlanError
from fitcompress.graph.analysis.costs import Costs, measure_costs
from fitcompress.graph.axes.algebra import Atom
from fitcompress.graph.axes.trace import AxisTrace, trace_axes
from fitcompress.graph.program import Program
from fitcompress.student.depth import Deepened, deepen_program, restore_norms
from fitcompress.student.output_projection import project_outputs
from fitcompress.student.width import (
    FrozenPlace,
    frozen_places,
    plan_sizes,
    thin_program,
    verify_program,
)
from fitcompress.student.width_search import CLOSE, CostTable, Fit, Limits, largest_sizes

__all__ = ["StudentPlan", "plan_student", "plan_within"]


@dataclass(frozen=True)
class StudentPlan:
    """A student derived from a teacher."""

    teacher: Program
    program: Program
    """The student, with tensors on the meta device."""
    deepened: Deepened
    """The teacher with the student's depth and the teacher's width; `trace` is its trace."""
    trace: AxisTrace
    sizes: dict[Atom, int]
    teacher_costs: Costs
    costs: Costs
    frozen: tuple[FrozenPlace, ...]
    has_restored_norms: bool
    has_projected_outputs: bool
    depth_mult: float
    width_mult: float
    """Of all axes, or the lower bound from which single axes were widened."""
    limits: Limits = field(default_factory=Limits)
    """Limits within which it is the largest student."""


def plan_student(teacher: Program, *, depth_mult: float, width_mult: float) -> StudentPlan:
    """Plans a student `depth_mult` times as deep and `width_mult` times as wide as the teacher.

    Raises:
        PlanError: a multiplier is out of range, or the planned student does not run.
    """
    if not (1 <= depth_mult < inf and 0 < width_mult <= 1):
        raise PlanError(
            "planning the student: expected a depth-mult of at least 1 and a width-mult above 0"
            f" and at most 1, got {depth_mult:g} and {width_mult:g}",
            code="multiplier-out-of-range",
            depth_mult=depth_mult,
            width_mult=width_mult,
        )
    base = _deepened(teacher, depth_mult, thins=width_mult < 1)
    return _thinned(base, plan_sizes(base.trace, width_mult), depth_mult, width_mult)


def plan_within(
    teacher: Program, limits: Limits, depths: Sequence[float]
) -> tuple[StudentPlan, Fit]:
    """Plans the largest student within the limits.

    Of several depths, the first at which a student fills the limits is used; if none does, the one
    at which it comes closest.

    Raises:
        PlanError: even the smallest student exceeds a limit.
    """
    found: list[tuple[Fit, _Base, float]] = []
    for depth_mult in depths:
        base = _deepened(teacher, depth_mult, thins=True)
        table = CostTable(base.deepened.program, base.trace)
        found.append((largest_sizes(base.trace, table, limits), base, depth_mult))
        if CLOSE <= found[-1][0].share <= 1:
            break
    fitting = [entry for entry in found if entry[0].share <= 1]
    if not fitting:
        fit, _, depth_mult = min(found, key=lambda entry: entry[0].share)
        raise PlanError(
            f"planning the student: the smallest student, at depth-mult {depth_mult:g}, exceeds a"
            f" target: it has {fit.tally.params:,} parameters, {2 * fit.tally.macs:,} FLOPs and"
            f" {fit.tally.size:,} bytes",
            code="target-too-small",
            advice="Raise the target or lower --depth-mult.",
            depth_mult=depth_mult,
            params=fit.tally.params,
            flops=2 * fit.tally.macs,
            size_bytes=fit.tally.size,
        )
    fit, base, depth_mult = max(fitting, key=lambda entry: entry[0].share)
    return replace(_thinned(base, fit.sizes, depth_mult, fit.width_mult), limits=limits), fit


@dataclass(frozen=True)
class _Base:
    """A deepened teacher whose axes still have the teacher's sizes."""

    teacher: Program
    deepened: Deepened
    trace: AxisTrace
    has_restored_norms: bool
    has_projected_outputs: bool


def _deepened(teacher: Program, depth_mult: float, *, thins: bool) -> _Base:
    normed = restore_norms(teacher) if depth_mult > 1 or thins else Deepened(teacher)
    deepened = _merge(normed, deepen_program(normed.program, depth_mult))
    trace = trace_axes(deepened.program)
    projected = project_outputs(deepened.program, trace) if thins else Deepened(teacher)
    if projected.fresh:
        deepened = _merge(deepened, projected)
        trace = trace_axes(deepened.program)
    return _Base(teacher, deepened, trace, bool(normed.fresh), bool(projected.fresh))


def _thinned(
    base: _Base, sizes: dict[Atom, int], depth_mult: float, width_mult: float
) -> StudentPlan:
    program = thin_program(base.deepened.program, base.trace, sizes)
    verify_program(program, base.teacher)
    return StudentPlan(
        base.teacher,
        program,
        base.deepened,
        base.trace,
        sizes,
        measure_costs(base.teacher),
        measure_costs(program),
        frozen_places(base.trace, program.trainable, sizes),
        base.has_restored_norms,
        base.has_projected_outputs,
        depth_mult,
        width_mult,
    )


def _merge(first: Deepened, second: Deepened) -> Deepened:
    return Deepened(
        second.program,
        {**first.origins, **second.origins},
        first.fresh | second.fresh,
        first.zeroed | second.zeroed,
        first.identities | second.identities,
    )
