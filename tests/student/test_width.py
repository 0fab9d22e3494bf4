"""Thinning: sizes, rewritten programs, and many kinds of networks."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from helpers.captured import captured, filled
from helpers.graph_nets import (
    Attention,
    Classifier,
    Dense,
    Excite,
    Gate,
    PaddedShortcut,
    Residual,
    Shuffle,
    conv,
    draw_network,
)
from torch import nn

from fitcompress.errors import PlanError
from fitcompress.graph.axes.trace import trace_axes
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, operation
from fitcompress.student.width import (
    frozen_places,
    plan_sizes,
    round_width,
    thin_program,
    verify_program,
)

MAP = (3, 8, 8)


def thinned(module: nn.Module, width_mult: float, shape=MAP) -> Program:
    program = captured(module, shape)
    trace = trace_axes(program)
    thin = thin_program(program, trace, plan_sizes(trace, width_mult))
    verify_program(thin, program)
    return thin


def shapes(program: Program) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in program.tensors.items()}


def literals(program: Program, name: str, position: int) -> list:
    """The arguments of the calls at this position, of those that have it."""
    calls = [node for node in program.graph.nodes if operation(node) == name]
    return [node.args[position] for node in calls if len(node.args) > position]


def behind_stem(body: nn.Module, width: int, out: int | None = None) -> nn.Module:
    return Classifier(nn.Sequential(conv(3, width), body), out or width)


# Sizes


@pytest.mark.parametrize(
    ("size", "width_mult", "expected"),
    [
        (256, 0.5, 128),
        (128, 0.3, 40),  # 38.4: 40 is within a tenth
        (64, 0.3, 20),  # 19.2: 16 and 24 are too far, 20 is not
        (32, 0.3, 10),  # 9.6: 8 and 12 are too far
        (10, 0.3, 3),
        (3, 0.3, 1),
        (1, 0.3, 1),
        (64, 1.0, 64),
        (7, 0.5, 4),  # 3.5
        (512, 0.01, 5),
    ],
)
def test_round_width_takes_friendly_numbers_that_are_near(size, width_mult, expected):
    assert round_width(size, width_mult) == expected


def test_round_width_counts_in_units():
    """Three heads of 64 each: one head, not a number of heads that makes 20 channels."""
    assert round_width(3, 0.3, 64) == 1
    assert round_width(12, 0.5, 3) == 6
    assert round_width(32, 0.3, 4) == 10


@pytest.mark.parametrize("width_mult", [0.1, 0.25, 0.3, 0.5, 0.77, 1.0])
def test_round_width_is_between_one_and_the_size_and_moves_by_a_tenth_at_most(width_mult):
    for size in range(1, 600):
        found, target = round_width(size, width_mult), size * width_mult
        assert 1 <= found <= size
        assert abs(found - target) <= max(0.1 * target, 0.5) or found == 1


def test_width_one_changes_no_size():
    assert plan_sizes(trace_axes(captured(behind_stem(Residual(8), 8), MAP)), 1) == {}


def test_inputs_outputs_and_kernels_keep_their_sizes():
    found = shapes(thinned(behind_stem(Residual(16), 16), 0.5))
    assert found["features.0.0.weight"] == (8, 3, 3, 3)
    assert found["features.1.conv2.weight"] == (8, 8, 3, 3)
    assert found["features.1.bn2.running_var"] == (8,)
    assert found["head.weight"] == (10, 8)


# Networks whose axes depend on each other


def test_depthwise_groups_follow_the_channels():
    thin = thinned(
        behind_stem(nn.Sequential(conv(32, 32, groups=32), conv(32, 64, 1)), 32, 64), 0.5
    )
    assert shapes(thin)["features.1.0.0.weight"] == (16, 1, 3, 3)
    assert literals(thin, "conv2d", 6)[:1] == [16]


@pytest.mark.parametrize(
    ("after", "weight", "groups"), [(256, (16, 4, 3, 3), 4), (32, (16, 2, 3, 3), 8)]
)
def test_groups_go_before_their_width_unless_that_leaves_much_fewer_parameters(
    after, weight, groups
):
    """At 0.5, 432 + 288 + 4096 parameters against 432 + 576 + 4096 are 0.94; with an eighth of the
    last, 0.81."""
    body = nn.Sequential(conv(32, 32, groups=8), conv(32, after, 1))
    thin = thinned(behind_stem(body, 32, after), 0.5)
    assert shapes(thin)["features.1.0.0.weight"] == weight
    assert literals(thin, "conv2d", 6)[:1] == [groups]


def test_a_few_groups_stay_and_their_insides_are_thinned():
    """Two groups at 0.3 would be one: 0.5 of the width, too far."""
    thin = thinned(behind_stem(nn.Sequential(conv(32, 32, groups=2), conv(32, 32, 1)), 32), 0.3)
    weight = shapes(thin)["features.1.0.0.weight"]
    assert literals(thin, "conv2d", 6)[:1] == [2]
    assert weight[0] == 2 * weight[1] == 10


@pytest.mark.parametrize(("heads", "width_mult", "left"), [(4, 0.5, 2), (4, 0.25, 1), (8, 0.25, 2)])
def test_heads_go_before_their_width(heads, width_mult, left):
    width = 8 * heads
    found = shapes(thinned(behind_stem(Attention(width, heads), width), width_mult))
    assert found["features.1.qkv.weight"] == (3 * left * 8, left * 8)
    assert found["features.1.norm.weight"] == (left * 8,)


def test_packed_queries_keys_and_values_stay_three():
    thin = thinned(behind_stem(Attention(32, 4), 32), 0.5)
    (packed,) = [a for a in literals(thin, "reshape", 1) if len(a) == 5]
    assert packed[2:] == [3, 2, 8]


def test_the_scale_of_attention_stays_when_heads_go_and_follows_when_their_width_does():
    few = thinned(behind_stem(Attention(32, 4), 32), 0.5)
    assert literals(few, "mul", 1) == [1 / math.sqrt(8)]
    inside = thinned(behind_stem(Attention(32, 1), 32), 0.5)
    assert literals(inside, "mul", 1) == [pytest.approx(1 / math.sqrt(16))]


def test_the_scale_is_that_of_the_width_when_there_are_as_many_heads():
    """16 heads of 16: the heads go, so that the scale stays."""
    thin = thinned(behind_stem(Attention(256, 16), 256), 0.5)
    assert literals(thin, "mul", 1) == [0.25]


def test_concatenated_features_are_thinned_term_by_term():
    found = shapes(thinned(behind_stem(Dense(16, 8, 3), 16, 40), 0.5))
    assert found["features.1.layers.2.0.weight"] == (4, 8 + 4 + 4, 3, 3)
    assert found["head.weight"] == (10, 8 + 3 * 4)


def test_padded_shortcuts_are_thinned_with_their_branch():
    thin = thinned(behind_stem(PaddedShortcut(16, 32), 16, 32), 0.5)
    pads = [a for name in ("pad", "constant_pad_nd") for a in literals(thin, name, 1)]
    (pad,) = pads
    weight = shapes(thin)["features.1.main.1.0.weight"]
    assert weight[0] == weight[1] == 16 and weight[0] == shapes(thin)["features.0.0.weight"][
        0
    ] + sum(pad)


def test_shuffled_channels_stay_two_halves():
    found = shapes(thinned(behind_stem(nn.Sequential(Shuffle(32), Shuffle(32)), 32), 0.5))
    assert found["features.1.0.branch.0.0.weight"] == (8, 8, 1, 1)
    assert found["head.weight"] == (10, 16)


def test_squeeze_and_excitation():
    found = shapes(thinned(behind_stem(Excite(32), 32), 0.5))
    assert found["features.1.down.weight"] == (4, 16, 1, 1)


def test_a_gated_unit_is_split_in_two_equal_halves():
    found = shapes(thinned(behind_stem(Gate(32, 4), 32), 0.5))
    assert found["features.1.layer.weight"] == (32, 16, 1, 1)


def test_a_shared_layer_is_thinned_once():
    layer = conv(16, 16)
    found = shapes(thinned(behind_stem(nn.Sequential(layer, layer), 16), 0.5))
    assert {shape for shape in found.values() if len(shape) == 4} == {(8, 3, 3, 3), (8, 8, 3, 3)}


def test_tied_weights_tie_their_axes():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(12, 12)
            self.first = nn.Linear(6, 12)
            self.last = nn.Linear(12, 4)

        def forward(self, x):
            y = self.first(x)
            return self.last(y + nn.functional.linear(self.inner(y), self.inner.weight.t()))

    assert shapes(thinned(Tied(), 0.5, (6,)))["inner.weight"] == (6, 6)


# Random networks


@pytest.mark.parametrize("seed", range(24))
def test_a_random_network_thins_runs_and_trains(seed):
    random = Random(seed)
    program = captured(draw_network(random), MAP)
    trace = trace_axes(program)
    thin = thin_program(program, trace, plan_sizes(trace, random.choice([0.3, 0.5])))
    verify_program(thin, program)
    size, thin_size = (sum(v.numel() for v in p.tensors.values()) for p in (program, thin))
    assert thin_size < 0.85 * size
    network = build_network(filled(thin)).train()
    for batch_size in (2, 5):
        assert network(torch.randn(batch_size, *MAP)).shape == (batch_size, 10)
    network(torch.randn(4, *MAP)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


# What is refused and what is said


def test_the_program_that_is_thinned_stays_as_it_was():
    program = captured(behind_stem(Attention(32, 4), 32), MAP)
    before = [node.format_node() for node in program.graph.nodes], shapes(program)
    trace = trace_axes(program)
    thin_program(program, trace, plan_sizes(trace, 0.5))
    assert before == ([node.format_node() for node in program.graph.nodes], shapes(program))


@pytest.mark.parametrize(
    "name, shape, cause",
    [("conv2.weight", (8, 7, 3, 3), "Invalid channel"), ("bn2.weight", (7,), "8 elements not 7")],
)
def test_verify_refuses_a_program_that_does_not_run(name, shape, cause):
    program = captured(behind_stem(Residual(8), 8), MAP)
    name = f"features.1.{name}"
    assert name in program.tensors
    tensors = {**program.tensors, name: torch.zeros(shape)}
    with pytest.raises(PlanError, match=cause) as caught:
        verify_program(replace(program, tensors=tensors), program)
    assert caught.value.code == "planned-student-fails"


def test_verify_refuses_other_outputs():
    program = captured(behind_stem(Residual(8), 8), MAP)
    tensors = {
        **program.tensors,
        "head.weight": torch.zeros(9, 8),
        "head.bias": torch.zeros(9),
    }
    with pytest.raises(PlanError) as caught:
        verify_program(replace(program, tensors=tensors), program)
    assert caught.value.code == "planned-outputs-mismatch"
    assert [shape[1:] for shape in caught.value.facts["got"]] == [[9]]


def test_frozen_places_name_the_reason_and_the_weights():
    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(6, 12)
            self.weight = nn.Parameter(torch.eye(12))
            self.last = nn.Linear(12, 4)

        def forward(self, x):
            return self.last(self.first(x) @ torch.linalg.inv(self.weight))

    program = captured(Inverse(), (6,))
    trace = trace_axes(program)
    (place,) = frozen_places(trace, program.trainable, plan_sizes(trace, 0.5))
    assert "linalg_inv" in place.reason
    assert place.sizes == (12,)
    assert set(place.tensors) == {"first.weight", "first.bias", "weight", "last.weight"}


def test_a_network_without_obstacles_has_no_frozen_places():
    program = captured(behind_stem(Residual(8), 8), MAP)
    trace = trace_axes(program)
    assert frozen_places(trace, program.trainable, plan_sizes(trace, 0.5)) == ()


@pytest.mark.parametrize("shape", [(-1, 12), (-1, 4, 12)], ids=["merged", "apart"])
def test_an_operation_without_a_rule_leaves_the_batch_free(shape):
    """Its result moves with the batch though no rule says so: what is inferred stays inferred."""

    class Differences(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, x):
            y = self.first(x).diff(dim=1)
            return self.last(y.reshape(shape)), y[:, None].expand(-1, 2, -1, -1)

    found = {operation(node) for node in thinned(Differences(), 0.5, (5, 6)).graph.nodes}
    assert found >= {"diff", "expand"}
