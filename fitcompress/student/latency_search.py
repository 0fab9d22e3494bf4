"""Students by what they may cost: the largest one within targets. Layer: pipeline.

Parameters, operations and bytes are closed functions of the sizes; latency is measured on this
machine, with random weights, and is then near 10 % of its target.
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
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import StudentPlan, plan_student, plan_within
from fitcompress.student.width_search import CLOSE, NARROWEST, Fit, Limits, Tally, tally_of

__all__ = ["Latency", "measure_latency", "runners_of", "student_of", "with_random_weights"]

_TRIES = 8


_NEAR, _AIM = 0.9, 0.95
"""The share of a latency from which a student counts as filling it, and what is tried for."""


_NUM_RUNS, _SECONDS = 100, 8.0
"""How often each network is called in turn, and when that ends sooner: too few calls of a large
network are off by more than what is left between `_NEAR` and 1."""


_FLATTEST, _LEAST_WAY = 0.2, 0.1
"""How little more time more operations may seem to take; how far between two sizes the next one
is at least from either."""


def student_of(
    teacher: Program,
    interface: Interface,
    recipe: StudentRecipe,
    *,
    emit: Emit,
    before: tuple[float, float] | None = None,
) -> StudentPlan:
    """The student that a recipe describes: by its multipliers, or the largest within its targets.

    before: depth-mult and most multiply-adds that were found for a latency earlier; it is then not
    measured again.

    Raises:
        PlanError: even the smallest student costs more than a target allows.
    """
    targets = recipe.targets
    if not targets:
        return plan_student(teacher, depth_mult=recipe.depths[0], width_mult=recipe.width)
    limits = _limits(targets, tally_of(teacher))
    if "latency" in targets and before is not None:
        return plan_within(teacher, replace(limits, macs=before[1]), before[:1])[0]
    if "latency" in targets:
        return _within_latency(teacher, interface, recipe, targets["latency"], limits, emit)
    plan, fit = plan_within(teacher, limits, recipe.depths)
    emit(Notice(topic="plan", message=_described(plan, fit, limits)))
    return plan


def _limits(targets: dict[str, Target], teacher: Tally) -> Limits:
    def limit(kind: str, of_teacher: float) -> float | None:
        return targets[kind].limit(of_teacher) if kind in targets else None

    flops = limit("flops", 2 * teacher.macs)
    macs = [m for m in (limit("macs", teacher.macs), flops and flops / 2) if m is not None]
    return Limits(
        limit("params", teacher.params), min(macs, default=None), limit("size", teacher.size)
    )


def _described(plan: StudentPlan, fit: Fit, limits: Limits) -> str:
    text = (
        f"the largest student within the targets uses {fit.share:.1%} of them: depth-mult"
        f" {plan.depth_mult:g}, width-mult from {plan.width_mult:.3g} on"
    )
    if fit.share < CLOSE and fit.above is not None:
        sizes = [_in_words(tally, limits) for tally in (fit.tally, fit.above)]
        text += f"; the reachable ones next to them are {sizes[0]} and {sizes[1]}"
    return text


def _in_words(tally: Tally, limits: Limits) -> str:
    words = {
        "params": f"{tally.params:,} parameters",
        "macs": f"{2 * tally.macs:,} FLOPs",
        "size": f"{tally.size:,} bytes",
    }
    return " with ".join(words[kind] for kind in words if getattr(limits, kind) is not None)


# --- latency ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Median seconds of one call with one sample on this machine's CPU."""

    onnxruntime: float
    torch: float

    def __str__(self) -> str:
        return (
            f"{1e3 * self.onnxruntime:.3g} ms in onnxruntime, {1e3 * self.torch:.3g} ms in PyTorch"
        )


@contextmanager
def runners_of(program: Program, interface: Interface) -> Iterator[dict[str, Runner]]:
    """By the name of each runtime, what runs the network in it; inside the block."""
    network = build_network(program).eval()
    with onnx_copy(network, interface) as in_onnx:
        yield {"onnxruntime": in_onnx, "torch": torch_runner(network, interface.images.shape)}


def measure_latency(networks: Sequence[Mapping[str, Runner]]) -> list[Latency]:
    """How long networks take, in turns, so that what else the machine does hits all alike."""
    medians: dict[str, list[float]] = {}
    for runtime in ("onnxruntime", "torch"):
        times = paired_latency(
            {str(number): own[runtime] for number, own in enumerate(networks)},
            (1,),
            num_runs=_NUM_RUNS,
            budget_s=_SECONDS,
        )
        medians[runtime] = [own["1"].median_ms / 1e3 for own in times.values()]
    return [Latency(*both) for both in zip(*medians.values(), strict=True)]


def _within_latency(
    teacher: Program,
    interface: Interface,
    recipe: StudentRecipe,
    target: Target,
    limits: Limits,
    emit: Emit,
) -> StudentPlan:
    """The largest student within the limits that is fast enough in onnxruntime, found by limiting
    its multiply-adds.
    """
    if num_processes() > 1:
        raise PlanError(
            "several processes would each measure another latency",
            advice="find the student with `fitcompress plan` first, and give --target-macs",
        )
    same = plan_student(teacher, depth_mult=1, width_mult=1)

    def measured(plan: StudentPlan) -> tuple[StudentPlan, float]:
        """The plan, and what it takes as a share of the target."""
        with runners_of(with_random_weights(plan), interface) as own:
            *others, found = measure_latency([*beside, own])
        most = target.limit(others[0].onnxruntime if others else 0)
        share = found.onnxruntime / most
        size = f"depth-mult {plan.depth_mult:g}, {plan.costs.macs:,} multiply-adds"
        emit(Notice(topic="plan", message=f"{size}: {found} ({share:.0%} of the target)"))
        return plan, share

    with ExitStack() as stack:
        beside: list[Mapping[str, Runner]] = []
        if target.is_share:
            whole = runners_of(with_random_weights(same), interface)
            beside.append(stack.enter_context(whole))
        return _search(teacher, recipe.depths, limits, 4 * same.costs.macs, measured)


def _search(
    teacher: Program,
    depths: Sequence[float],
    limits: Limits,
    high: int,
    measured: Callable[[StudentPlan], tuple[StudentPlan, float]],
) -> StudentPlan:
    """The largest student that is within the limits and the latency; `high`: multiply-adds that are
    too many.
    """

    def within(macs: int) -> StudentPlan:
        most_macs = macs if limits.macs is None else min(macs, limits.macs)
        return plan_within(teacher, replace(limits, macs=most_macs), (depth,))[0]

    for depth in depths:
        narrow = plan_student(teacher, depth_mult=depth, width_mult=NARROWEST)
        best, share = measured(within(narrow.costs.macs))
        if share <= 1:
            break
    else:
        raise PlanError(
            f"no student is that fast: the smallest, at depth-mult {depth:g}, takes"
            f" {share:.3g} times as long as it may",
            advice="raise the target, or lower --depth-mult",
        )
    fast: list[tuple[int, float]] = [(best.costs.macs, share)]
    slow: tuple[int, float | None] = high, None
    for _ in range(_TRIES):
        if share >= _NEAR or fast[-1][0] >= (limits.macs or math.inf):
            break
        middle = _promising(fast, slow)
        plan, used = measured(within(middle))
        if used <= 1:
            fast.append((middle, used))
            best, share = plan, used
        else:
            slow = middle, used
    return best


def _promising(fast: Sequence[tuple[int, float]], slow: tuple[int, float | None]) -> int:
    """Multiply-adds that may take `_AIM` of the latency, on a straight line of the logarithms.

    fast: those that take less and what they took, in order.
    slow: some that take more, and what they took if that was measured.
    """
    start, below = map(math.log, fast[-1])
    end = math.log(slow[0])
    if slow[1] is not None:
        slope = (math.log(slow[1]) - below) / (end - start)
    elif len(fast) > 1:
        slope = (below - math.log(fast[-2][1])) / (start - math.log(fast[-2][0]))
    else:
        slope = 1.0
    steps = (math.log(_AIM) - below) / max(slope, _FLATTEST)
    way = min(max(steps / (end - start), _LEAST_WAY), 1 - _LEAST_WAY)
    return int(math.exp(start + way * (end - start)))


def with_random_weights(plan: StudentPlan) -> Program:
    """The planned student, as something that runs: it takes as long with any weights."""
    return replace(plan.program, tensors=initial_tensors(plan, init="random", seed=0))
