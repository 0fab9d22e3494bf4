"""Costs of students of several depths and widths: `plan --pareto`."""

from __future__ import annotations

import time

from fitcompress.evaluation.benchmark import latency, torch_runner
from fitcompress.events import Emit, Notice, StageFinished, StageStarted
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program
from fitcompress.interface import Interface
from fitcompress.student.init import random_program
from fitcompress.student.plan import plan_student

__all__ = ["frontier"]

_DEPTHS, _WIDTHS = (1.0, 1.5, 2.0, 3.0), (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def frontier(teacher: Program, interface: Interface, *, emit: Emit) -> list[dict[str, float]]:
    """Costs of students of several depths and uniform widths.

    Each has "depth_mult", "width_mult", "params", "macs", "flops", "depth" and "latency_ms", the
    median time of one sample in PyTorch on this machine's CPU.
    """
    rows = []
    emit(StageStarted(stage="frontier"))
    started = time.monotonic()
    for number, depth in enumerate(_DEPTHS, 1):
        for width in _WIDTHS:
            plan = plan_student(teacher, depth_mult=depth, width_mult=width)
            network = build_network(random_program(plan))
            runner = torch_runner(network, interface.images.shape)
            times = latency(runner.run, runner.make_input, (1,), num_warmup=1, budget_s=1.0)
            costs = {"depth_mult": depth, "width_mult": width, **plan.costs.to_dict()}
            rows.append({**costs, "latency_ms": times["1"].median_ms})
        message = f"{number} of {len(_DEPTHS)} depths measured"
        emit(Notice(topic="plan", message=message, code="depths-measured"))
    seconds = time.monotonic() - started
    emit(StageFinished(stage="frontier", seconds=seconds, num_images=0, detail={}))
    return rows
