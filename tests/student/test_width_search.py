"""Costs as functions of sizes, compared with real networks; the largest sizes within limits."""

from __future__ import annotations

import functools
from math import prod

import pytest
from helpers.captured import timm_program

from fitcompress.errors import PlanError
from fitcompress.student.plan import plan_student, plan_within
from fitcompress.student.width import plan_sizes, thin_program
from fitcompress.student.width_search import CLOSE, CostTable, Limits, largest_sizes, tally_of

FAMILIES = [
    "resnet50",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "densenet121",
    "swin_tiny_patch4_window7_224",
    "efficientnet_b0",
    "mixer_s32_224",
    "regnety_004",
]


@functools.cache
def plan_of(name: str):
    return plan_student(timm_program(name), depth_mult=2, width_mult=0.5)


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("width_mult", [0.1, 0.77])
def test_the_table_has_the_costs_of_the_thinned_program(name, width_mult):
    plan = plan_of(name)
    deep = plan.deepened.program
    sizes = plan_sizes(plan.trace, width_mult)
    table = CostTable(deep, plan.trace)
    assert table.at(sizes).tally == tally_of(thin_program(deep, plan.trace, sizes))


@pytest.mark.parametrize("name", ["resnet50", "swin_tiny_patch4_window7_224"])
def test_resizing_one_axis_gives_the_costs_of_the_whole_table(name):
    plan = plan_of(name)
    table = CostTable(plan.deepened.program, plan.trace)
    before = table.at(plan.sizes)
    for atom in list(plan.sizes)[::7]:
        changed = {**plan.sizes, atom: plan.sizes[atom] + 1}
        assert before.resized(atom, changed[atom]) == table.at(changed)


@pytest.mark.integration
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("kind", "share"), [("params", 0.1), ("macs", 0.2)])
def test_a_plan_is_not_over_its_budget_and_fills_it(name, kind, share):
    plan = plan_of(name)
    limit = share * getattr(plan.teacher_costs, kind)
    table = CostTable(plan.deepened.program, plan.trace)
    fit = largest_sizes(plan.trace, table, Limits(**{kind: limit}))
    program = thin_program(plan.deepened.program, plan.trace, fit.sizes)
    cost = getattr(tally_of(program), kind)
    assert cost == getattr(fit.tally, kind)
    assert CLOSE * limit <= cost <= limit
    assert fit.share == pytest.approx(cost / limit)


def test_every_limit_holds_at_once():
    plan = plan_of("resnet50")
    table = CostTable(plan.deepened.program, plan.trace)
    limits = Limits(params=2e6, macs=4e8, size=6e6)
    tally = largest_sizes(plan.trace, table, limits).tally
    assert tally.params <= 2e6 and tally.macs <= 4e8 and tally.size <= 6e6
    assert max(tally.params / 2e6, tally.macs / 4e8, tally.size / 6e6) >= CLOSE


def test_bytes_are_those_of_a_state_dict():
    plan = plan_of("resnet50")
    values = plan.program.tensors.values()
    assert tally_of(plan.program).size == sum(4 * prod(value.shape) for value in values)


def test_a_teacher_within_the_limits_is_not_thinned():
    teacher = timm_program("resnet18")
    plan, fit = plan_within(teacher, Limits(params=1e9), (1.0,))
    assert plan.costs == plan.teacher_costs and fit.above is None


def test_of_several_depths_the_first_that_fills_the_budget():
    teacher = timm_program("resnet18")
    for depths in ((2.0, 1.0), (1.0, 2.0)):
        plan, _ = plan_within(teacher, Limits(params=1e6), depths)
        assert plan.depth_mult == depths[0]


def test_a_shallower_student_where_the_deep_one_cannot_be_that_small():
    teacher = timm_program("resnet50")
    smallest = {
        depth: plan_student(teacher, depth_mult=depth, width_mult=0.01).costs.params
        for depth in (2.0, 1.0)
    }
    limit = sum(smallest.values()) / 2
    plan, _ = plan_within(teacher, Limits(params=limit), (2.0, 1.0))
    assert plan.depth_mult == 1.0 and plan.costs.params <= limit
    with pytest.raises(PlanError) as caught:
        plan_within(teacher, Limits(params=smallest[1.0] - 1), (2.0, 1.0))
    assert caught.value.code == "target-too-small"
    assert (caught.value.facts["depth_mult"], caught.value.facts["params"]) == (1.0, smallest[1.0])
