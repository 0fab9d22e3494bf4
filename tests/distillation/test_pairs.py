"""Hint pairs: in the middle, in the same stage, or named by the user."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.fx import GraphModule

from fitcompress.distillation.hooks import record_outputs
from fitcompress.distillation.pairs import LayerMap, choose_pairs, map_layers
from fitcompress.errors import LayerError, PlanError
from fitcompress.graph.analysis.blocks import find_blocks, node_blocks
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.student.init import initial_tensors
from fitcompress.student.plan import plan_student


def layers_of(program: Program) -> LayerMap:
    return map_layers(program, build_network(program, node_blocks(find_blocks(program))))


@functools.cache
def teacher_of(name: str, side: int = 64) -> LayerMap:
    torch.manual_seed(0)
    return layers_of(captured(timm.create_model(name), side))


def captured(network: nn.Module, side: int = 64) -> Program:
    example = torch.zeros(2, 3, side, side)
    return capture_module(network.eval(), (example,))


@functools.cache
def student_of(name: str, side: int = 64) -> LayerMap:
    plan = plan_student(teacher_of(name, side).program, depth_mult=2, width_mult=0.3)
    tensors = initial_tensors(plan, init="random", seed=0)
    return layers_of(replace(plan.program, tensors=tensors))


@pytest.fixture
def resnet() -> tuple[LayerMap, LayerMap]:
    return teacher_of("resnet18"), student_of("resnet18")


def names(pairs) -> list[tuple[str, str]]:
    return [(pair.hint.name, pair.guided.name) for pair in pairs]


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_efficientnet", "densenet121"])
@pytest.mark.parametrize("side_of", [teacher_of, student_of])
def test_the_layers_are_those_that_hooks_see_when_the_network_runs(name, side_of):
    side = side_of(name, 64 if name != "test_vit" else 160)
    network = build_network(side.program, side.blocks)
    inputs = [torch.zeros(2, *info.shape, dtype=info.dtype) for info in side.program.inputs]
    seen = [(name, tuple(v.shape[1:])) for name, v in record_outputs(network, *inputs).items()]
    parts = dict(network.named_modules())
    nested = {name for name, part in parts.items() if isinstance(part, GraphModule)}
    hooked = [layer for layer in side.layers if layer.kind != "Block" or layer.name in nested]
    assert [(layer.name, layer.shape) for layer in hooked] == seen
    for layer in hooked:
        kind = "Block" if layer.name in nested else type(parts[layer.name]).__name__
        assert layer.kind == kind


def test_layers_come_in_order_with_their_share_of_the_depth(resnet):
    layers = {layer.name: layer for layer in resnet[0].layers}
    shares = [layer.depth_share for layer in resnet[0].candidates]

    assert shares == sorted(shares)
    # 18 weighted layers: the stem, 16 in blocks (shortcuts lie beside them), the classifier.
    assert layers["conv1"].depth_share == pytest.approx(1 / 18)
    assert layers["layer2.1"].depth_share == pytest.approx(9 / 18)
    assert layers["fc"].depth_share == 1
    assert (layers["layer2.1"].kind, layers["layer2.1"].shape) == ("Block", (128, 8, 8))
    assert [layer.name for layer in resnet[0].candidates] == [
        f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)
    ]


def test_candidates_know_their_stage(resnet):
    assert [layer.stage for layer in resnet[0].candidates] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_without_names_the_values_between_weights_are_candidates():
    class Nameless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.ParameterList([torch.randn(8, 3, 3, 3), torch.randn(8, 8, 3, 3)])
            self.head = nn.Parameter(torch.randn(5, 8))

        def forward(self, x_NCHW):
            for weight in self.weights:
                x_NCHW = nn.functional.conv2d(x_NCHW, weight, padding=1).relu()
            return x_NCHW.mean((2, 3)) @ self.head.T

    layers = layers_of(captured(Nameless(), 8))
    names_of = {layer.name for layer in layers.candidates}

    assert all(layer.depth_share < 1 for layer in layers.candidates)
    assert names_of, "a hint can be chosen"


def test_blocks_that_share_what_they_call_are_candidates_too():
    """All blocks read one table of relative positions, so none is a module of its own."""
    layers = student_of("test_vit_relpos", 160)
    names_of = [layer.name for layer in layers.candidates]

    assert names_of == [f"blocks.{number}" for number in range(len(names_of))]
    assert len(names_of) >= 16
    shapes = propagate_shapes(layers.program)
    assert all(layer.shape == tuple(shapes[layer.node][1:]) for layer in layers.layers)


@pytest.mark.integration
def test_single_layers_are_candidates_where_they_are_the_blocks():
    layers = teacher_of("vgg11", 32)

    assert {layer.kind for layer in layers.candidates} == {"Conv2d"}
    assert max(layer.depth_share for layer in layers.candidates) < 1


# --- automatic pairs ---------------------------------------------------------------------------


def test_the_middle_is_the_end_of_the_second_of_four_stages(resnet):
    (pair,) = choose_pairs(*resnet)

    assert names([pair]) == [("layer2.1", "layer2.3")]
    assert pair.guided.depth_share == pytest.approx(0.5, abs=0.05)
    assert pair.hint.shape[1:] == pair.guided.shape[1:]


def test_a_transformer_without_stages_is_paired_at_its_middle_block():
    teacher = teacher_of("vit_tiny_patch16_224", 224)
    (pair,) = choose_pairs(teacher, teacher)

    assert names([pair]) == [("blocks.5", "blocks.5")]
    assert pair.hint_channel_axis == 1
    assert pair.hint.shape == (197, 192)


@pytest.mark.parametrize(
    ("num_pairs", "expected"),
    [
        (2, [("layer1.1", "layer1.4"), ("layer3.1", "layer3.3")]),
        (3, [("layer1.1", "layer1.4"), ("layer2.1", "layer2.3"), ("layer3.1", "layer3.3")]),
    ],
)
def test_several_pairs_are_spread_over_the_depth(resnet, num_pairs, expected):
    pairs = choose_pairs(*resnet, num_pairs=num_pairs)

    assert [hint for hint, _ in names(pairs)] == [hint for hint, _ in expected]
    ends = {layer.stage: layer.name for layer in resnet[1].candidates}
    assert [pair.guided.name for pair in pairs] == [ends[pair.hint.stage] for pair in pairs]


def test_pairs_are_not_repeated(resnet):
    pairs = names(choose_pairs(*resnet, num_pairs=40))

    assert len(pairs) == len(set(pairs)) <= len(resnet[0].candidates)


def test_a_network_without_inner_layers_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    layers = layers_of(captured(network, 8))

    with pytest.raises(PlanError) as caught:
        choose_pairs(layers, layers)
    assert caught.value.code == "hint-layer-missing"


# --- named layers ------------------------------------------------------------------------------


def test_a_named_hint_gets_the_layer_at_its_place(resnet):
    end = next(
        layer.name for layer in reversed(resnet[1].candidates) if layer.name.startswith("layer2")
    )
    for hint in ("layer2.1", "layer2"):
        assert names(choose_pairs(*resnet, hints=[hint])) == [(hint, end)]


def test_a_named_guided_layer_gets_a_hint_at_its_depth(resnet):
    (pair,) = choose_pairs(*resnet, guided=["layer3.0"])

    assert names([pair]) == [("layer3.0", "layer3.0")]


def test_named_layers_are_paired_in_their_order(resnet):
    pairs = choose_pairs(*resnet, hints=["layer3.0", "relu"], guided=["layer1.0", "layer2.0.conv1"])

    assert names(pairs) == [("layer3.0", "layer1.0"), ("relu", "layer2.0.conv1")]


def test_a_value_inside_a_block_can_be_named(resnet):
    (pair,) = choose_pairs(*resnet, hints=["layer2.0.bn1"])

    assert pair.hint.shape == (128, 8, 8)
    assert pair.hint.shape == tuple(propagate_shapes(resnet[0].program)[pair.hint.node][1:])
    assert not pair.is_non_negative


@pytest.mark.parametrize("side", ["hints", "guided"])
def test_an_unknown_layer_is_refused_with_near_misses(resnet, side):
    with pytest.raises(LayerError) as caught:
        choose_pairs(*resnet, **{side: ["layer22"]})

    assert caught.value.facts["layer"] == "layer22"
    assert "'layer2'" in caught.value.advice


def test_a_layer_with_several_results_is_refused_by_their_names():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fork = Fork()
            self.heads = nn.ModuleList([nn.Linear(8, 5), nn.Linear(8, 5)])

        def forward(self, x_NCHW):
            left, right = (part.mean((2, 3)) for part in self.fork(x_NCHW))
            return self.heads[0](left) + self.heads[1](right)

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left = nn.Conv2d(3, 8, 3)
            self.right = nn.Conv2d(3, 8, 3)

        def forward(self, x_NCHW):
            return self.left(x_NCHW), self.right(x_NCHW)

    layers = layers_of(captured(Forked(), 8))

    with pytest.raises(LayerError) as caught:
        choose_pairs(layers, layers, hints=["fork"])
    assert caught.value.code == "layer-ambiguous"
    assert len(caught.value.facts["outputs"]) == 2


# --- other families ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "student"), [("test_resnet", "test_vit"), ("test_vit", "test_resnet")]
)
def test_a_student_of_another_family_is_paired_at_the_same_depth(teacher, student):
    (pair,) = choose_pairs(teacher_of(teacher, 160), teacher_of(student, 160))

    assert pair.hint.depth_share == pytest.approx(0.5, abs=0.2)
    assert pair.guided.depth_share == pytest.approx(pair.hint.depth_share, abs=0.35)
    axes = {"test_resnet": 0, "test_vit": 1}
    assert (pair.hint_channel_axis, pair.guided_channel_axis) == (axes[teacher], axes[student])


@pytest.mark.integration
def test_channels_are_found_where_they_come_last():
    layers = teacher_of("test_convnext")
    tokens = teacher_of("swin_tiny_patch4_window7_224", 224)

    (maps,), (last,) = choose_pairs(layers, layers), choose_pairs(tokens, tokens)

    assert (maps.hint_channel_axis, maps.hint.shape[0]) == (0, 48)
    assert last.hint_channel_axis == 2
    assert last.hint.shape == (14, 14, 384)


# --- signs -------------------------------------------------------------------------------------


class Ending(nn.Module):
    """A first half with the given last layers."""

    def __init__(self, *ending: nn.Module) -> None:
        super().__init__()
        self.lower = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *ending)
        self.upper = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, 5)

    def forward(self, x_NCHW):
        return self.head(self.upper(self.lower(x_NCHW)).flatten(1))


@pytest.mark.parametrize(
    ("ending", "is_non_negative"),
    [
        ([nn.ReLU()], True),
        ([nn.ReLU6()], True),
        ([nn.Sigmoid()], True),
        ([nn.Hardtanh(0, 1)], True),
        ([nn.Hardtanh()], False),
        ([nn.Softplus()], True),
        ([nn.ReLU(), nn.MaxPool2d(2)], True),
        ([nn.ReLU(), nn.AvgPool2d(2), nn.Dropout(0.1)], True),
        ([], False),
        ([nn.GELU()], False),
        ([nn.SiLU()], False),
        ([nn.LeakyReLU()], False),
        ([nn.ReLU(), nn.BatchNorm2d(8)], False),
        ([nn.Tanh(), nn.MaxPool2d(2)], False),
    ],
    ids=lambda value: "+".join(type(m).__name__ for m in value) if isinstance(value, list) else "",
)
def test_the_last_operation_tells_whether_a_hint_is_non_negative(ending, is_non_negative):
    layers = layers_of(captured(Ending(*ending), 8))

    (pair,) = choose_pairs(layers, layers, hints=["lower"], guided=["lower"])

    assert pair.is_non_negative is is_non_negative
