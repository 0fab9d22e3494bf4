"""Linear layers after outputs that are as wide as inner layers."""

from __future__ import annotations

import pytest
import torch
from helpers.captured import captured
from torch import nn

from fitcompress.graph.program import Program, run_program
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import StudentPlan, plan_student


class Embedder(nn.Module):
    """A residual stream of 16 that is the output; `is_map` leaves its channels at dimension 1."""

    def __init__(self, is_map: bool):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1))
        self.is_map = is_map

    def forward(self, x):
        x = self.stem(x)
        x = x + self.body(x)
        return x if self.is_map else x.mean((2, 3))


def student_program(plan: StudentPlan, init: str) -> Program:
    tensors = initial_tensors(plan, init=init, seed=0)
    return Program(plan.program.graph, tensors, plan.program.trainable, plan.program.inputs)


@pytest.mark.parametrize("is_map", [True, False])
def test_the_inside_gets_thinner_and_the_output_keeps_its_width(is_map):
    teacher = captured(Embedder(is_map), (3, 8, 8))
    plan = plan_student(teacher, depth_mult=1, width_mult=0.5)

    shapes = {name: tuple(value.shape) for name, value in plan.program.tensors.items()}
    assert shapes["stem.weight"] == (8, 3, 3, 3)
    assert shapes["body.2.weight"] == (8, 16, 1, 1)
    assert shapes["output_projection.weight"] == (16, 8)
    assert plan.has_projected_outputs
    x = torch.randn(3, 3, 8, 8)
    (expected,), (found,) = run_program(teacher, x), run_program(student_program(plan, "random"), x)
    assert found.shape == expected.shape


@pytest.mark.parametrize("is_map", [True, False])
def test_an_inherited_map_puts_each_kept_channel_where_it_was(is_map):
    """With every other channel of the teacher at zero, nothing is lost."""
    torch.manual_seed(0)
    module = Embedder(is_map)
    with torch.no_grad():
        for layer in (module.stem, module.body[2]):
            layer.weight[::2] = 0
            layer.bias[::2] = 0
        module.body[0].weight[::2] = 0
        module.body[0].bias[::2] = 0
    teacher = captured(module, (3, 8, 8))
    plan = plan_student(teacher, depth_mult=1, width_mult=0.5)
    x = torch.randn(2, 3, 8, 8)
    (expected,) = run_program(teacher, x)
    (found,) = run_program(student_program(plan, "inherit"), x)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0.1


def test_classes_that_nothing_reads_need_no_map():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(8, 5)

        def forward(self, x):
            x = self.body(x).relu()
            return (self.one(x) + self.two(x)) / 2

    plan = plan_student(captured(Classifier(), (4,)), depth_mult=1, width_mult=0.5)
    assert not plan.has_projected_outputs
    assert "output_projection.weight" not in plan.program.tensors


def test_at_full_width_nothing_is_added():
    teacher = captured(Embedder(is_map=True), (3, 8, 8))
    plan = plan_student(teacher, depth_mult=1, width_mult=1)
    assert set(plan.program.tensors) == set(teacher.tensors)
