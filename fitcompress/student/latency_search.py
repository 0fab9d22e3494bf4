"""Search for the largest student within a latency.

Latency is measured on this machine, with random weights. The search limits multiply-adds and ends
within about 10 % of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from fitcompress.errors import PlanError
from fitcompress.evaluation.benchmark import Runner, paired_latency, torch_runner
from fitcompress.events import Emit, Notice
from fitcompress.exporters.latency import onnx_copy
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program
from fitcompress.interface import Interface
from fitcompress.ranks import num_processes
from fitcompress.recipe.schema import StudentRecipe
from fitcompress.recipe.targets import Target
from fitcompress.student.init import random_program
from fitcompress.student.plan import StudentPlan, plan_student, plan_within
from fitcompress.student.width_search import MIN_WIDTH_MULT, Limits

__all__ = ["Latency", "measure_latency", "plan_within_latency", "runners_of"]

_MAX_TRIES = 8
_ENOUGH, _AIM = 0.9, 0.95
"""Share of the latency at which the search stops, and the share that each step aims at."""
_NUM_RUNS, _SECONDS = 100, 8.0
"""Calls of each network per measurement, and when it ends earlier. With fewer calls of a large
network the error exceeds the range from `_ENOUGH` to 1.
"""
_MIN_SLOPE, _MIN_STEP = 0.2, 0.1
"""Least growth of log latency per log multiply-adds, and least distance of the next size from both
ends of the bracket, as a share of the bracket.
"""


@dataclass(frozen=True)
class Latency:
    """Median seconds per call with one sample on this machine's CPU."""

    onnxruntime: float
    torch: float

    def __str__(self) -> str:
        return (
            f"{1e3 * self.onnxruntime:.3g} ms in onnxruntime, {1e3 * self.torch:.3g} ms in PyTorch"
        )


@contextmanager
def runners_of(program: Program, interface: Interface) -> Iterator[dict[str, Runner]]:
    """Runners of the network by runtime, valid inside the block."""
    network = build_network(program).eval()
    with onnx_copy(network, interface) as in_onnx:
        yield {"onnxruntime": in_onnx, "torch": torch_runner(network, interface.images.shape)}


def measure_latency(networks: Sequence[Mapping[str, Runner]]) -> list[Latency]:
    """Latency of each network; calls alternate, so that other load affects all networks alike."""
    medians: dict[str, list[float]] = {}
    for runtime in ("onnxruntime", "torch"):
        times = paired_latency(
            {str(number): runners[runtime] for number, runners in enumerate(networks)},
            (1,),
            num_runs=_NUM_RUNS,
            budget_s=_SECONDS,
        )
        medians[runtime] = [timing["1"].median_ms / 1e3 for timing in times.values()]
    return [Latency(*both) for both in zip(*medians.values(), strict=True)]


def plan_within_latency(
    teacher: Program,
    interface: Interface,
    recipe: StudentRecipe,
    target: Target,
    limits: Limits,
    emit: Emit,
) -> StudentPlan:
    """The largest student within the limits that meets the latency in onnxruntime.

    Raises:
        PlanError: even the smallest student is too slow or exceeds a limit, or several processes
            would measure different latencies.
    """
    if num_processes() > 1:
        raise PlanError(
            f"planning for a latency: expected one process, got {num_processes()}; each would"
            " measure a different latency",
            code="latency-with-processes",
            advice="Run `fitcompress plan` in one process first, then pass the student's"
            " multiply-adds as --target-macs.",
        )
    same = plan_student(teacher, depth_mult=1, width_mult=1)

    def measure(plan: StudentPlan) -> float:
        """Latency of the planned student as a share of the target."""
        with runners_of(random_program(plan), interface) as runners:
            *others, found = measure_latency([*references, runners])
        share = found.onnxruntime / target.limit(others[0].onnxruntime if others else 0)
        size = f"depth-mult {plan.depth_mult:g}, {plan.costs.macs:,} multiply-adds"
        message = f"{size}: {found} ({share:.0%} of the target)"
        emit(Notice(topic="plan", message=message, code="latency-measured"))
        return share

    with ExitStack() as stack:
        references: list[Mapping[str, Runner]] = []
        if target.is_share:
            # A copy of the teacher, measured with each student.
            references.append(stack.enter_context(runners_of(random_program(same), interface)))
        return _search(teacher, recipe.depths, limits, 4 * same.costs.macs, measure)


def _search(
    teacher: Program,
    depths: Sequence[float],
    limits: Limits,
    too_many: int,
    measure: Callable[[StudentPlan], float],
) -> StudentPlan:
    """Bisects multiply-adds between the smallest student and `too_many`."""

    def within(macs: int) -> StudentPlan:
        most_macs = macs if limits.macs is None else min(macs, limits.macs)
        return plan_within(teacher, replace(limits, macs=most_macs), (depth,))[0]

    for depth in depths:
        narrowest = plan_student(teacher, depth_mult=depth, width_mult=MIN_WIDTH_MULT)
        best = within(narrowest.costs.macs)
        if (share := measure(best)) <= 1:
            break
    else:
        raise PlanError(
            f"planning for a latency: the smallest student, at depth-mult {depth:g}, takes"
            f" {share:.3g} times the target latency",
            code="latency-target-too-small",
            advice="Raise the target or lower --depth-mult.",
            depth_mult=depth,
            share=share,
        )
    fast: list[tuple[int, float]] = [(best.costs.macs, share)]
    slow: tuple[int, float | None] = too_many, None
    for _ in range(_MAX_TRIES):
        if share >= _ENOUGH or fast[-1][0] >= (limits.macs or math.inf):
            break
        middle = _next_size(fast, slow)
        plan = within(middle)
        if (used := measure(plan)) <= 1:
            fast.append((middle, used))
            best, share = plan, used
        else:
            slow = middle, used
    return best


def _next_size(fast: Sequence[tuple[int, float]], slow: tuple[int, float | None]) -> int:
    """Multiply-adds estimated to take `_AIM` of the latency: log latency is taken as linear in log
    multiply-adds.

    fast: multiply-adds that meet the latency and the share that they take, in order.
    slow: multiply-adds that exceed it, and the share if measured.
    """
    start, below = map(math.log, fast[-1])
    end = math.log(slow[0])
    if slow[1] is not None:
        slope = (math.log(slow[1]) - below) / (end - start)
    elif len(fast) > 1:
        slope = (below - math.log(fast[-2][1])) / (start - math.log(fast[-2][0]))
    else:
        slope = 1.0
    distance = (math.log(_AIM) - below) / max(slope, _MIN_SLOPE)
    step = min(max(distance / (end - start), _MIN_STEP), 1 - _MIN_STEP)
    return int(math.exp(start + step * (end - start)))
