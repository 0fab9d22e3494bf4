"""The student as a plan: a program without weights, where it came from, and what it costs. Layer:
graph.

Planning is deterministic and touches no tensor's values; `initialise` turns a plan into weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from fitcompress.errors import PlanError
from fitcompress.graph.axes import Atom
from fitcompress.graph.costs import Costs, measure_costs
from fitcompress.graph.deepen import Deepened, deepen_program, restore_norms
from fitcompress.graph.program import Program
from fitcompress.graph.project import project_outputs
from fitcompress.graph.thin import (
    FrozenPlace,
    frozen_places,
    plan_sizes,
    thin_program,
    verify_program,
)
from fitcompress.graph.trace import AxisTrace, trace_axes

__all__ = ["StudentPlan", "plan_student"]


@dataclass(frozen=True)
class StudentPlan:
    """A student derived from a teacher."""

    teacher: Program
    program: Program
    """The student: its tensors are on the meta device."""
    deepened: Deepened
    """The teacher with the student's depth and its own width: the tensors of `trace`."""
    trace: AxisTrace
    sizes: dict[Atom, int]
    teacher_costs: Costs
    costs: Costs
    frozen: tuple[FrozenPlace, ...]
    has_restored_norms: bool
    has_projected_outputs: bool


def plan_student(teacher: Program, *, depth_mult: float, width_mult: float) -> StudentPlan:
    """The student that is `depth_mult` times as deep and `width_mult` times as wide as `teacher`.
    Nothing is modified.

    Raises:
        PlanError: a multiplier is out of range, or what was planned does not run.
    """
    if not (1 <= depth_mult < inf and 0 < width_mult <= 1):
        raise PlanError(
            f"a student cannot have depth-mult {depth_mult:g} and width-mult {width_mult:g}",
            advice="depth-mult must be at least 1, width-mult above 0 and at most 1",
        )
    changes = depth_mult > 1 or width_mult < 1
    normed = restore_norms(teacher) if changes else Deepened(teacher)
    deepened = _merge(normed, deepen_program(normed.program, depth_mult))
    trace = trace_axes(deepened.program)
    projected = project_outputs(deepened.program, trace) if width_mult < 1 else Deepened(teacher)
    if projected.fresh:
        deepened = _merge(deepened, projected)
        trace = trace_axes(deepened.program)
    sizes = plan_sizes(trace, width_mult)
    program = thin_program(deepened.program, trace, sizes)
    verify_program(program, teacher)
    return StudentPlan(
        teacher,
        program,
        deepened,
        trace,
        sizes,
        measure_costs(teacher),
        measure_costs(program),
        frozen_places(trace, program.trainable, sizes),
        bool(normed.fresh),
        bool(projected.fresh),
    )


def _merge(first: Deepened, second: Deepened) -> Deepened:
    return Deepened(
        second.program,
        {**first.origins, **second.origins},
        first.fresh | second.fresh,
        first.zeroed | second.zeroed,
        first.identities | second.identities,
    )
