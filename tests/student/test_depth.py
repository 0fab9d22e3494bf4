"""Deepening: depth, names, and the same function at the start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.captured import captured, filled, outputs, timm_program, unnamed
from helpers.graph_nets import Attention, Classifier, Mixer, Residual, conv
from torch import nn

from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.graph.program import Program, operation
from fitcompress.student.depth import Deepened, deepen_program, restore_norms
from fitcompress.student.width import verify_program

MAP = (3, 8, 8)


def started(deepened: Deepened) -> Program:
    """The deepened program with random new tensors, except zeros at the end of branches."""
    program = filled(deepened.program, seed=1)
    zeros = {name: torch.zeros_like(program.tensors[name]) for name in deepened.zeroed}
    return replace(program, tensors={**program.tensors, **zeros})


DEEP = ["resnet18", "vgg11", "densenet121", "inception_v3", "hrnet_w18_small"]
DEEP += ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224"]


@pytest.mark.integration
@pytest.mark.parametrize("name", DEEP)
def test_twice_the_depth_is_reached(name):
    program = timm_program(name)
    deep = deepen_program(program, 2).program
    verify_program(deep, program)
    assert 1.8 <= measure_costs(deep).depth / measure_costs(program).depth <= 2.1


@pytest.mark.parametrize(("depth_mult", "expected"), [(1, 18), (1.5, 26), (3, 52)])
def test_other_depths_of_resnet18(depth_mult, expected):
    deep = deepen_program(timm_program("resnet18"), depth_mult).program
    assert measure_costs(deep).depth == pytest.approx(expected, abs=1)


def test_depth_one_changes_nothing():
    program = timm_program("resnet18")
    deepened = deepen_program(program, 1)
    assert deepened.fresh == deepened.zeroed == frozenset() and deepened.origins == {}
    assert [n.format_node() for n in deepened.program.graph.nodes] == [
        n.format_node() for n in program.graph.nodes
    ]


def test_the_program_that_is_deepened_stays_as_it_was():
    program = timm_program("resnet18")
    before = [node.format_node() for node in program.graph.nodes], set(program.tensors)
    deepen_program(program, 2)
    assert before == ([node.format_node() for node in program.graph.nodes], set(program.tensors))


# Names


def test_copies_go_on_with_the_names_of_their_stage():
    deepened = deepen_program(timm_program("resnet18"), 2)
    blocks = {".".join(name.split(".")[:2]) for name in deepened.fresh}
    added = {s: sum(name.startswith(f"layer{s}.") for name in blocks) for s in (1, 2, 3, 4)}
    assert blocks == {f"layer{s}.{2 + i}" for s, count in added.items() for i in range(count)}
    assert sorted(added.values()) in ([2, 2, 2, 2], [2, 2, 2, 3], [1, 2, 3, 3])
    assert deepened.origins["layer1.2.conv1.weight"] in (
        "layer1.0.conv1.weight",
        "layer1.1.conv1.weight",
    )


def test_copies_are_owned_by_their_own_modules():
    deep = deepen_program(timm_program("resnet18"), 2).program
    owners = {str(node.meta["owner"]) for node in deep.graph.nodes if operation(node) == "relu"}
    assert {"layer1.2.act1", "layer1.2.act2", "layer4.3.act2"} <= owners
    for node in deep.graph.nodes:
        weights = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        assert all(name.startswith(f"{node.meta['owner']}.") for name in weights)


def test_inserted_layers_are_numbered_where_they_stand():
    deepened = deepen_program(timm_program("densenet121"), 2)
    names = {name.partition("_deeper")[2].partition(".")[0] for name in deepened.fresh}
    assert names == {"", "2"}
    layers = [f"features.denseblock1.denselayer{n}.conv1_deeper.layer" for n in (1, 2, 6)]
    assert {f"{layer}.weight" for layer in layers} <= deepened.fresh
    owners = {str(node.meta.get("owner")) for node in deepened.program.graph.nodes}
    assert {*layers, "features.denseblock1.denselayer2.conv1_deeper"} <= owners


def test_copies_run_behind_the_last_block_of_their_stage():
    deep = deepen_program(timm_program("resnet18"), 2).program
    names = [str(node.args[1].target) for node in deep.graph.nodes if operation(node) == "conv2d"]
    first = [names.index(f"layer2.{index}.conv1.weight") for index in range(3)]
    assert first == sorted(first) and first[-1] < names.index("layer3.0.conv1.weight")


def test_new_tensors_are_on_the_meta_device_and_have_the_shapes_of_their_origins():
    program = captured(Classifier(nn.Sequential(conv(3, 8), Residual(8)), 8), MAP)
    deepened = deepen_program(program, 2)
    for name, origin in deepened.origins.items():
        value = deepened.program.tensors[name]
        assert value.is_meta and value.shape == program.tensors[origin].shape
        assert (name in deepened.program.trainable) == (origin in program.trainable)
    assert deepened.fresh == deepened.program.tensors.keys() - program.tensors.keys()


def test_no_two_copies_share_weights_that_are_trained():
    deep = deepen_program(timm_program("vit_tiny_patch16_224"), 2).program
    for node in deep.graph.nodes:
        if node.op == "get_attr" and node.target in deep.trainable:
            assert len(node.users) == 1, node.target


def test_a_network_without_names_gets_new_ones():
    program = unnamed(timm_program("resnet18"))
    deepened = deepen_program(program, 2)
    verify_program(deepened.program, program)
    assert measure_costs(deepened.program).depth == 36
    assert len(deepened.fresh) == len(set(deepened.fresh)) == len(deepened.origins)


# New blocks start as nothing


class Tokens(nn.Module):
    """A small transformer on 8 x 8 places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(3, 16)
        self.blocks = nn.Sequential(*(nn.Sequential(Attention(16, 2), Mixer(16)) for _ in range(2)))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize(
    "network",
    [
        Classifier(nn.Sequential(conv(3, 8), Residual(8), Residual(8)), 8),
        Tokens(),
    ],
    ids=["residual", "transformer"],
)
def test_residual_copies_compute_nothing_at_first(network):
    program = captured(network, MAP)
    deepened = deepen_program(program, 2)
    assert deepened.zeroed and measure_costs(deepened.program).depth > measure_costs(program).depth
    x = torch.randn(3, *MAP)
    torch.testing.assert_close(outputs(started(deepened), x), outputs(program, x), rtol=0, atol=0)


@pytest.mark.parametrize(
    "name", ["test_vit.r160_in1k", "test_convnext.r160_in1k", "test_vit2.r160_in1k"]
)
def test_residual_copies_compute_nothing_at_first_in_timm_models(name):
    """Exact up to the order of sums: a copy of zeros adds +0."""
    program = filled(timm_program(name, None))
    deepened = deepen_program(program, 2)
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(outputs(started(deepened), x), outputs(program, x))


def test_inserted_layers_compute_nothing_at_first():
    """Without repeated blocks, residual layers are inserted."""
    narrowing = nn.Sequential(conv(3, 8), conv(8, 12), conv(12, 16), conv(16, 24))
    program = captured(Classifier(narrowing, 24), MAP)
    deepened = deepen_program(program, 2)
    assert measure_costs(deepened.program).depth >= 9
    x = torch.randn(3, *MAP)
    assert torch.equal(outputs(started(deepened), x)[0], outputs(program, x)[0])


def test_layers_are_inserted_behind_a_weight_that_is_used_transposed():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 10))
            self.last = nn.Linear(10, 4)

        def forward(self, x):
            return self.last(torch.relu(nn.functional.linear(x, self.weight.t())))

    program = captured(Transposed(), (6,))
    deepened = deepen_program(program, 2)
    assert measure_costs(deepened.program).depth >= 3
    x = torch.randn(3, 6)
    assert torch.equal(outputs(started(deepened), x)[0], outputs(program, x)[0])


def test_tensors_that_start_at_zero_are_new_and_trained():
    deepened = deepen_program(timm_program("resnet18"), 2)
    assert deepened.zeroed <= deepened.fresh & deepened.program.trainable
    assert {name.split(".", 2)[2] for name in deepened.zeroed} == {"bn2.weight", "bn2.bias"}


# Norms that were folded away


class Folded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))


def test_norms_are_put_behind_every_convolution_of_a_network_without_any():
    program = captured(Folded(), MAP)
    normed = restore_norms(program)
    verify_program(normed.program, program)
    spine = [operation(n) for n in normed.program.graph.nodes if operation(n)]
    assert spine[:3] == ["conv2d", "batch_norm", "relu"]
    assert spine.count("batch_norm") == 2
    assert len(normed.fresh) == 8 and len(normed.fresh & normed.program.trainable) == 4
    fresh = {
        name: torch.ones_like(value, device="cpu")
        if name.endswith(("weight", "var"))
        else torch.zeros_like(value, device="cpu")
        for name, value in normed.program.tensors.items()
        if name in normed.fresh
    }
    started = replace(normed.program, tensors={**normed.program.tensors, **fresh})
    x = torch.randn(2, *MAP)
    torch.testing.assert_close(outputs(started, x), outputs(program, x), rtol=1e-4, atol=1e-5)


def test_norms_are_not_put_where_there_are_some():
    program = captured(Classifier(nn.Sequential(conv(3, 8), nn.Conv2d(8, 8, 1)), 8), MAP)
    assert restore_norms(program).fresh == frozenset()


def test_layers_of_a_sequence_all_go_on_counting():
    body = nn.Sequential(*(layer for _ in range(3) for layer in conv(8, 8)))
    program = captured(Classifier(nn.Sequential(conv(3, 8), body), 8), MAP)
    fresh = deepen_program(program, 2).fresh
    modules = sorted({int(name.split(".")[2]) for name in fresh if name.startswith("features.1.")})
    assert modules == list(range(8, 8 + len(modules)))


def test_a_map_without_an_activation_is_not_repeated():
    """Two consecutive linear maps have no more capacity than one."""
    body = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    deepened = deepen_program(captured(body, (8,)), 2)
    modules = {name.rpartition(".")[0] for name in deepened.origins}
    assert {deepened.origins[f"{name}.weight"] for name in modules} == {"1.weight"}
