"""Random programs of ATen calls are thinned exactly, planned as students, counted and deepened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from helpers.captured import filled, outputs
from hypothesis import given, settings
from hypothesis import strategies as st
from random_programs.random_checks import (
    Kept,
    check_parts,
    check_scales,
    draw_kept,
    thinned,
    values_of,
)
from random_programs.random_graphs import (
    COMMON,
    RESIDUALS,
    STEPS,
    WITHOUT_RULE,
    draw_chain,
    draw_program,
    random_inputs,
)
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode

from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.graph.axes.rules import RULES
from fitcompress.graph.axes.trace import free_weight_atoms, trace_axes
from fitcompress.graph.program import Program, clone, operation
from fitcompress.student.depth import deepen_program
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import plan_student
from fitcompress.student.width import verify_program

# Whole programs


def single(program: Program) -> Program:
    """The program in single precision, in which students are made."""

    def cast(value: Any) -> Any:
        return torch.float32 if value is torch.float64 else value

    copy = clone(program)
    for node in copy.graph.nodes:
        node.args = tuple(map(cast, node.args))
        node.kwargs = {name: cast(value) for name, value in node.kwargs.items()}
    inputs = tuple(replace(info, dtype=cast(info.dtype)) for info in program.inputs)
    tensors = {
        name: value.float() if value.is_floating_point() else value
        for name, value in program.tensors.items()
    }
    return replace(copy, tensors=tensors, inputs=inputs)


def check_student(program: Program, width_mult: float) -> None:
    """A student with inherited weights runs at two batch sizes; at full width it is the teacher."""
    teacher = single(program)
    plan = plan_student(teacher, depth_mult=1, width_mult=width_mult)
    student = replace(plan.program, tensors=initial_tensors(plan, init="inherit", seed=0))
    assert plan.costs.params == sum(student.tensors[name].numel() for name in student.trainable)
    for batch_size in (1, 3):
        inputs = random_inputs(teacher, batch_size)
        for one, other in zip(outputs(student, *inputs), outputs(teacher, *inputs), strict=True):
            assert one.shape == other.shape
            assert width_mult < 1 or torch.equal(one.nan_to_num(), other.nan_to_num())


def check_costs(program: Program) -> None:
    """The multiply-adds are half the FLOPs that torch counts, per sample of a batch of two."""
    inputs = random_inputs(program, 2)
    with FlopCounterMode(display=False) as counter:
        values = values_of(program, inputs)
    missed = sum(uncounted(node, values) for node in program.graph.nodes)
    costs = measure_costs(program)

    assert costs.macs == (counter.get_total_flops() // 2 + missed) // 2
    assert costs.flops == 2 * costs.macs
    assert costs.params == sum(program.tensors[name].numel() for name in program.trainable)


def uncounted(node: Node, values: dict[str, Any]) -> int:
    """The multiply-adds of a product with a vector, or of a sum over one index, that torch computes
    without a matrix product."""
    name = operation(node)
    if name not in ("mv", "matmul", "einsum"):
        return 0
    args = map_arg(node.args, lambda source: values[source.name])
    with FlopCounterMode(display=False) as counter:
        result = node.target(*args)
    if counter.get_total_flops():
        return 0
    return result.numel() if name == "einsum" else args[0].numel()


def check_deeper(program: Program, *, is_residual: bool = False) -> None:
    """A deepened program runs; its outputs do not change if its blocks are residual or it has no
    copied blocks."""
    shallow = single(program)
    deepened = deepen_program(shallow, 2)
    verify_program(deepened.program, shallow)
    assert measure_costs(deepened.program).depth >= measure_costs(shallow).depth
    deep = filled(deepened.program)
    zeros = {name: torch.zeros_like(deep.tensors[name]) for name in deepened.zeroed}
    deep = replace(deep, tensors={**deep.tensors, **zeros})
    inputs = random_inputs(shallow, 3)
    for one, other in zip(outputs(deep, *inputs), outputs(shallow, *inputs), strict=True):
        assert one.shape == other.shape
        if is_residual or not deepened.origins:
            assert torch.equal(one.nan_to_num(), other.nan_to_num())


# The tests

WIDTHS = (0.1, 0.3, 0.55, 0.8)

Plan = Sequence[tuple[str, int]]


def plans(names: Sequence[str] = tuple(STEPS), often: Sequence[str] = COMMON) -> st.SearchStrategy:
    """Steps with their seeds; half of the steps are common in networks."""
    name = st.one_of(st.sampled_from(often), st.sampled_from(names))
    return st.lists(st.tuples(name, st.integers(0, 10**6)), min_size=1, max_size=16)


def checked(plan: Plan, seed: int) -> tuple[Program, Kept, int]:
    """A checked program, the indices kept, and how many of its calls were compared."""
    program, scales = draw_program(plan)
    trace = trace_axes(program)
    kept = draw_kept(trace, Random(seed))
    compared = check_parts(program, trace, kept)
    check_scales(program, trace, kept, scales)
    return program, kept, compared


def dealt(random: Random) -> Iterator[Plan]:
    """Plans that contain every step once, and as many of the common ones."""
    names = random.sample(list(STEPS), len(STEPS))
    while names:
        hand = [names.pop() for _ in range(min(6, len(names)))]
        hand += random.choices(COMMON, k=len(hand))
        random.shuffle(hand)
        yield [(name, random.randrange(10**6)) for name in hand]


@pytest.fixture(scope="module")
def sample() -> list[tuple[Program, Kept, int]]:
    """Checked programs, in which every step is dealt three times."""
    plans = [plan for seed in range(3) for plan in dealt(Random(seed))]
    return [checked(plan, seed) for seed, plan in enumerate(plans)]


def test_every_rule_is_drawn(sample):
    seen = Counter(operation(node) for program, *_ in sample for node in program.graph.nodes)
    assert sorted(set(RULES) - set(seen)) == [], "rules that no step of `random_graphs` calls"


def test_operations_without_a_rule_are_drawn_and_freeze(sample):
    drawn = {operation(node) for program, *_ in sample for node in program.graph.nodes}
    without = {name.split(".")[0] for name in WITHOUT_RULE}
    assert without <= drawn - set(RULES)


def test_the_sample_is_worth_checking(sample):
    """Most calls are compared by value, and most programs are thinned."""
    calls = sum(
        isinstance(node.target, OpOverload)
        for program, *_ in sample
        for node in program.graph.nodes
    )
    assert sum(compared for *_, compared in sample) > 0.8 * calls
    shrunk = [
        any(len(places) < atom.size for atom, places in kept.items()) for _, kept, _ in sample
    ]
    assert sum(shrunk) > 0.6 * len(sample)


@given(plans(), st.integers(0, 10**6))
@settings(max_examples=120)
def test_the_thin_program_computes_the_kept_part(plan, seed):
    checked(plan, seed)


@given(plans(), st.sampled_from(WIDTHS))
@settings(max_examples=40)
def test_students_run_at_every_batch_size_with_the_outputs_of_the_teacher(plan, width_mult):
    check_student(draw_program(plan)[0], width_mult)


@given(plans())
@settings(max_examples=20)
def test_inheriting_at_full_width_is_the_teacher_exactly(plan):
    check_student(draw_program(plan)[0], 1)


@given(plans(), st.integers(0, 10**6))
@settings(max_examples=40)
def test_costs_are_those_of_torch_before_and_after(plan, seed):
    program, _ = draw_program(plan)
    check_costs(program)
    trace = trace_axes(program)
    check_costs(thinned(program, trace, draw_kept(trace, Random(seed))))


@given(plans())
@settings(max_examples=25)
def test_deeper_programs_run_and_new_layers_compute_nothing_at_first(plan):
    check_deeper(draw_program(plan)[0])


@given(st.sampled_from((3, 4)), plans(tuple(RESIDUALS), tuple(RESIDUALS)))
@settings(max_examples=20)
def test_deeper_chains_of_residual_blocks_compute_the_same_at_first(rank, plan):
    check_deeper(draw_chain(rank, plan[:4]), is_residual=True)


@pytest.mark.slow
@given(plans(), st.integers(0, 10**6), st.sampled_from((*WIDTHS, 1)))
@settings(max_examples=3000)
def test_many_programs(plan, seed, width_mult):
    program, *_ = checked(plan, seed)
    check_student(program, width_mult)
    check_costs(program)
    check_deeper(program)


# The checks can fail


@pytest.mark.parametrize("name", ["flip", "roll", "cumsum", "sort"])
def test_a_rule_that_forgets_the_order_is_found(name, monkeypatch):
    monkeypatch.setitem(RULES, name, RULES["clone"])
    with pytest.raises(AssertionError, match=name):
        for seed in range(20):
            checked([("linear.default", seed), (f"{name}.default", seed)], seed)


def test_a_scale_that_is_not_derived_from_its_size_is_found():
    program, scales = draw_program([("scaled_dot_product_attention.default", 0)])
    trace = trace_axes(program)
    kept = {atom: [0] for atom in free_weight_atoms(trace)}
    assert scales and trace.constants
    check_scales(program, trace, kept, scales)
    with pytest.raises(AssertionError):
        check_scales(program, replace(trace, constants=()), kept, scales)
