"""Plan a student for every model of timm, on shapes alone, and write one CSV row per model.

    python sweep.py --out timm.csv --processes 2
    python sweep.py --out some.csv --models 'resnet*' 'vit_tiny*'

A row is written when its model is done, so a stopped sweep continues where it was. Each process
uses one core. Nothing is downloaded and no weights are created.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import torch
from rows import add_rows, models_like, one_line, read_rows
from timm.models import _registry as registry
from torch.utils._pytree import tree_leaves

from fitcompress.events import ignore
from fitcompress.graph.axes.algebra import Axis
from fitcompress.graph.axes.trace import STRUCTURAL, AxisTrace, trace_axes
from fitcompress.graph.program import Program, output_nodes
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.models.model import Model
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.student.plan import plan_student
from fitcompress.student.planner import make_regressors, plan_run
from fitcompress.student.width import round_width

DEPTH_MULT, WIDTH_MULT = 2.0, 0.3


@dataclass(kw_only=True)
class Row:
    """Result for one model; fields of steps that were not reached are empty."""

    model: str
    family: str
    captured: bool = False
    """Captured as a program, lifted, and run on shapes at two batch sizes."""
    verified: bool = False
    """The student runs at two batch sizes and has outputs of the same shape."""
    nodes: int = 0
    params: int = 0
    params_ratio: float = 0.0
    """Student over teacher at depth-mult 1."""
    floor_ratio: float = 0.0
    """The same if every axis except input and classes were scaled independently."""
    depth: int = 0
    depth_ratio: float = 0.0
    hint: str = ""
    guided: str = ""
    regressor: str = ""
    seconds: float = 0.0
    """Processor time on one core from the model's name to the plan, without imports."""
    frozen: str = ""
    notice: str = ""


def measure(name: str) -> list[Row]:
    """The row of one model; an error becomes its notice."""
    row = Row(model=name, family=registry._model_to_module.get(name, ""))
    try:
        _fill(row)
    except Exception as error:
        row.notice = one_line(error)
    return [row]


def _fill(row: Row) -> None:
    settings = {
        "teacher.source": row.model,
        "teacher.pretrained": False,
        "student.depth_mult": DEPTH_MULT,
        "student.width_mult": WIDTH_MULT,
    }
    recipe = resolve_recipe(settings=settings)
    start = time.process_time()
    teacher = open_teacher(recipe.teacher, meta=True)
    row.captured = True
    row.nodes = len(teacher.program.graph.nodes)
    planned = plan_run(teacher, recipe, emit=ignore, meta=True)
    row.seconds = round(time.process_time() - start, 2)
    _check_network(planned.student)
    _check_network(planned.teacher)
    row.verified = True

    assert planned.plan is not None
    costs = planned.plan.teacher_costs
    row.params, row.depth = costs.params, costs.depth
    row.depth_ratio = round(planned.plan.costs.depth / max(1, costs.depth), 4)
    pair = planned.pairs[0]
    ((regressor, description),) = make_regressors(planned.pairs, recipe.hints)
    result = regressor.to("meta")(torch.empty((2, *pair.guided.shape), device="meta"))
    target = regressor.target(torch.empty((2, *pair.hint.shape), device="meta"))
    assert result.shape == target.shape, (result.shape, target.shape)
    row.hint, row.guided, row.regressor = pair.hint.name, pair.guided.name, description

    thin = plan_student(teacher.program, depth_mult=1, width_mult=WIDTH_MULT)
    row.params_ratio = round(thin.costs.params / costs.params, 4)
    row.floor_ratio = round(floor_params(teacher.program) / costs.params, 4)
    row.frozen = "; ".join(
        f"{place.reason} {list(place.sizes)} in {len(place.tensors)} tensors"
        for place in thin.frozen
    )
    row.notice = "; ".join(planned.summary.notices)


def _check_network(model: Model) -> None:
    """Check that the lifted network's outputs have the shapes of the program's."""
    for batch_size in (2, 3):
        shapes = propagate_shapes(model.program, batch_size)
        inputs = [
            torch.empty((batch_size, *info.shape), dtype=info.dtype, device="meta")
            for info in model.program.inputs
        ]
        found = tree_leaves(model.network.to("meta")(*inputs))
        expected = [shapes[node.name] for node in output_nodes(model.program.graph)]
        assert [tuple(value.shape) for value in found] == expected


def floor_params(program: Program) -> int:
    """Parameters if each axis of each weight were scaled independently, except axes whose size is
    given by the input, positions, the outputs or a kernel. Shared axes are ignored.
    """
    trace, total = trace_axes(program), 0
    for name in program.trainable:
        total += prod(
            size if _is_given(trace, axis) else round_width(size, WIDTH_MULT)
            for axis, size in zip(trace.weights[name], program.tensors[name].shape, strict=True)
        )
    return total


def _is_given(trace: AxisTrace, axis: Axis) -> bool:
    algebra = trace.algebra
    return any(algebra.frozen_reason(atom) in STRUCTURAL for atom in algebra.atoms(axis))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["*"], help="name patterns")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    done = {row["model"] for row in read_rows(given.out)}
    names = [name for name in models_like(given.models) if name not in done]
    tasks = [partial(measure, name) for name in names]
    add_rows(given.out, Row, tasks, processes=given.processes)


if __name__ == "__main__":
    main()
