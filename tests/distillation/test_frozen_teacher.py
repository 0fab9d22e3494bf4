"""Frozen and cut networks have the outputs and the cost that they should."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import Residual, trained_a_little
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.distillation.hooks import record_outputs
from fitcompress.distillation.partial_networks import cut_at, verify_cut
from fitcompress.errors import CaptureError
from fitcompress.events import ignore
from fitcompress.interface import InputSpec
from fitcompress.models.open import open_teacher, teacher_from_module
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.run.estimate import stage_cost
from fitcompress.student.planner import Planned, plan_run

SIDE = 64


@pytest.fixture(scope="module")
def planned() -> Planned:
    settings = {
        "teacher.source": "test_resnet",
        "teacher.pretrained": False,
        "teacher.input_size": (3, SIDE, SIDE),
    }
    recipe = resolve_recipe(settings=settings)
    teacher = open_teacher(recipe.teacher)
    with torch.no_grad():
        for name, value in teacher.program.tensors.items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return plan_run(teacher, recipe, emit=ignore)


def test_a_frozen_teacher_has_the_teacher_s_outputs_up_to_rounding(planned):
    frozen = freeze_teacher(planned.teacher)
    x = torch.randn(3, 3, SIDE, SIDE)
    (found,) = frozen.network(x)
    expected = planned.teacher.network.eval()(x).detach()
    assert frozen.folded.num_folded > 0 and not frozen.folded.refused
    assert not any(isinstance(part, nn.BatchNorm2d) for part in frozen.network.modules())
    # float32 sums in another order
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_frozen_teacher_takes_no_gradients(planned):
    frozen = freeze_teacher(planned.teacher)
    assert not any(parameter.requires_grad for parameter in frozen.network.parameters())
    assert not frozen.network.training


def test_both_cuts_are_what_hooks_see_in_the_whole_networks(planned):
    (pair,) = planned.pairs
    x = torch.randn(2, 3, SIDE, SIDE)
    hint = freeze_teacher(planned.teacher, [pair.hint.node]).network
    guided = cut_at(planned.student, [pair.guided.node])
    seen = record_outputs(planned.student.network, x, names=[pair.guided.name])
    assert torch.equal(guided.eval()(x)[0], seen[pair.guided.name])
    names = [pair.hint.name]
    assert verify_cut(planned.teacher.network, hint, names, x) == names


def test_a_cut_at_another_place_is_noticed(planned):
    layers = [name for name, _ in planned.teacher.blocks]
    nodes = dict(planned.teacher.blocks)
    wrong = freeze_teacher(planned.teacher, [nodes[layers[1]][-1]]).network
    x = torch.randn(2, 3, SIDE, SIDE)
    with pytest.raises(CaptureError) as caught:
        verify_cut(planned.teacher.network, wrong, [layers[0]], x)
    assert caught.value.code == "cut-values-differ"
    assert caught.value.facts["layer"] == layers[0]


def test_a_network_that_returns_nan_is_noticed(planned):
    (pair,) = planned.pairs
    hint = freeze_teacher(planned.teacher, [pair.hint.node]).network
    x = torch.full((2, 3, SIDE, SIDE), float("nan"))
    with pytest.raises(CaptureError) as caught:
        verify_cut(planned.teacher.network, hint, [pair.hint.name], x)
    assert caught.value.code == "cut-values-differ"


def counted_flops(network: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops()


def test_the_cost_of_a_stage_is_what_torch_counts_in_its_parts(planned):
    (pair,) = planned.pairs
    hint, guided = [pair.hint.node], [pair.guided.node]
    first = stage_cost(planned.teacher, planned.student, hint, guided)
    whole = stage_cost(planned.teacher, planned.student)
    assert first.teacher_flops == counted_flops(freeze_teacher(planned.teacher, hint).network)
    assert first.student_flops == counted_flops(cut_at(planned.student, guided).eval())
    assert whole.teacher_flops == counted_flops(planned.teacher.network.eval())
    assert whole.student_flops == counted_flops(planned.student.network.eval())
    assert first.step_flops == first.teacher_flops + 3 * first.student_flops
    assert first.step_flops < whole.step_flops
    assert stage_cost(None, planned.student).step_flops == 3 * whole.student_flops


def test_training_the_student_s_part_trains_the_student():
    spec = InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
    teacher = teacher_from_module(trained_a_little(Residual()), spec)
    planned = plan_run(teacher, resolve_recipe(settings={"teacher.source": "x"}), emit=ignore)
    part = cut_at(planned.student, [planned.pairs[0].guided.node])
    own = {id(parameter) for parameter in planned.student.network.parameters()}
    assert {id(parameter) for parameter in part.parameters()} <= own
