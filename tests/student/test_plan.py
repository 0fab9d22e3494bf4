"""Plans of many architectures, and refused multipliers."""

from __future__ import annotations

import functools
from random import Random

import pytest
from helpers.captured import captured, timm_program
from helpers.graph_nets import draw_network
from torch import nn

from fitcompress.errors import PlanError
from fitcompress.graph.analysis.blocks import find_blocks
from fitcompress.student.plan import StudentPlan, plan_student

TEACHERS = [
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "regnety_004",
    "densenet121",
    "inception_v3",
    "vgg11",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "convnext_atto",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "mixer_s32_224",
    "hrnet_w18_small",
]


@functools.cache
def planned(name: str, depth_mult: float) -> StudentPlan:
    return plan_student(timm_program(name), depth_mult=depth_mult, width_mult=0.3)


@pytest.mark.integration
@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_is_nearly_twice_as_deep_and_far_smaller(name):
    plan = planned(name, 2)
    assert plan.costs.depth >= 1.8 * plan.teacher_costs.depth
    assert plan.costs.params <= 0.25 * plan.teacher_costs.params


@pytest.mark.integration
@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_of_the_same_depth_has_a_quarter_of_the_parameters_at_most(name):
    plan = planned(name, 1)
    assert plan.costs.depth == plan.teacher_costs.depth
    assert plan.costs.params <= 0.25 * plan.teacher_costs.params


def test_a_plan_has_the_parts_of_its_student():
    plan = planned("resnet18", 2)
    assert all(value.is_meta for value in plan.program.tensors.values())
    assert plan.deepened.program.tensors.keys() == plan.trace.weights.keys()
    blocks, own = find_blocks(plan.program), find_blocks(plan.teacher)
    known = {block.name for block in own}
    assert [b.name for b in own] == [b.name for b in blocks if b.name in known]
    assert blocks[-1].depth_end == plan.costs.depth
    assert not plan.has_restored_norms and plan.frozen == ()


def test_a_plan_is_the_same_each_time():
    one, two = (
        plan_student(timm_program("resnet18"), depth_mult=2, width_mult=0.3) for _ in range(2)
    )
    assert [n.format_node() for n in one.program.graph.nodes] == [
        n.format_node() for n in two.program.graph.nodes
    ]
    assert {k: v.shape for k, v in one.program.tensors.items()} == {
        k: v.shape for k, v in two.program.tensors.items()
    }


def test_multipliers_of_one_leave_the_teacher():
    teacher = timm_program("resnet18")
    plan = plan_student(teacher, depth_mult=1, width_mult=1)
    assert plan.costs == plan.teacher_costs and plan.sizes == {}
    assert plan.program.tensors.keys() == teacher.tensors.keys()


@pytest.mark.parametrize(
    ("depth_mult", "width_mult"), [(0.5, 0.3), (2, 0), (2, -1), (2, 1.5), (float("nan"), 0.3)]
)
def test_impossible_multipliers_are_refused(depth_mult, width_mult):
    with pytest.raises(PlanError) as caught:
        plan_student(timm_program("resnet18"), depth_mult=depth_mult, width_mult=width_mult)
    assert caught.value.code == "multiplier-out-of-range"


def test_norms_are_restored_only_when_something_changes():
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 4),
    )
    program = captured(network, (3, 8, 8))
    assert plan_student(program, depth_mult=1, width_mult=0.5).has_restored_norms
    assert not plan_student(program, depth_mult=1, width_mult=1).has_restored_norms


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_can_be_planned(seed):
    program = captured(draw_network(Random(seed)), (3, 8, 8))
    plan = plan_student(program, depth_mult=2, width_mult=0.5)
    assert plan.costs.depth >= 1.7 * plan.teacher_costs.depth
