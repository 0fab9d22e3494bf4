"""The spine and its blocks: by name where modules are named, by repetition where not."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.captured import captured, timm_program, unnamed
from helpers.graph_nets import Classifier, Residual, conv
from torch import nn

from fitcompress.graph.analysis.blocks import find_blocks, spine_nodes
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.graph.program import operation
from fitcompress.graph.shapes import propagate_shapes


def names(program) -> list[str]:
    return [block.name for block in find_blocks(program)]


def spine_operations(program) -> list[str]:
    return [operation(node) for node in spine_nodes(program, propagate_shapes(program))]


def test_every_node_of_a_chain_is_on_the_spine():
    program = captured(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))
    assert spine_operations(program) == ["", "linear", "relu", "linear"]


def test_what_a_shortcut_goes_around_is_not_on_the_spine():
    program = captured(Classifier(nn.Sequential(conv(3, 8), Residual(8)), 8), (3, 8, 8))
    expected = ["", "conv2d", "batch_norm", "relu", "add", "relu", "mean", "linear"]
    assert spine_operations(program) == expected


def test_sizes_and_weights_are_no_short_cuts():
    """The batch size that a reshape reads from the input would otherwise pass by everything."""

    class Reshaped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(3, 4)

        def forward(self, x):
            y = self.one(x)
            return self.two(y.view(x.shape[0], 2, 3)) * self.two.weight.sum()

    assert spine_operations(captured(Reshaped(), (6,)))[:4] == ["", "linear", "reshape", "linear"]


def test_several_inputs_start_the_spine_where_they_meet():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 4), nn.Linear(5, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            return self.head(torch.relu(self.one(x) + self.two(y)))

    assert spine_operations(captured(Two(), (3,), (5,))) == ["add", "relu", "linear"]


def test_several_outputs_end_the_spine_where_they_part():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x):
            y = torch.relu(self.body(x))
            return self.one(y), self.two(y)

    program = captured(Two(), (3,))
    assert spine_operations(program) == ["", "linear", "relu"]
    assert [block.name for block in find_blocks(program)] == ["body"]


def test_an_output_in_the_middle_ends_the_spine():
    class Tapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.one(x)
            return y, self.two(y)

    assert spine_operations(captured(Tapped(), (3,))) == ["", "linear"]


def test_the_blocks_of_resnet18_are_those_of_its_author():
    blocks = find_blocks(timm_program("resnet18"))
    found = {block.name: block for block in blocks}
    expected = [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]
    assert [name for name in found if name.startswith("layer")] == expected
    assert [b.preserves_shape for b in blocks if b.name.startswith("layer")] == [
        True, True, False, True, False, True, False, True,
    ]  # fmt: skip
    assert all(found[name].depth == 2 for name in expected)
    assert found["layer2.1"].shape == (128, 28, 28)
    assert found["layer1.0"].tail.name != found["layer1.1"].tail.name
    assert operation(found["layer1.0"].tail) == "relu"


def test_the_blocks_of_a_vision_transformer_hold_attention_and_mlp():
    blocks = [b for b in find_blocks(timm_program("vit_tiny_patch16_224")) if "blocks" in b.name]
    assert [block.name for block in blocks] == [f"blocks.{index}" for index in range(12)]
    assert {(block.depth, block.shape, block.preserves_shape) for block in blocks} == {
        (4, (197, 192), True)
    }
    assert len({block.signature for block in blocks}) == 1


def test_the_layers_of_vgg_are_blocks():
    blocks = find_blocks(timm_program("vgg11"))
    assert sum(block.depth for block in blocks) == 11
    assert {block.depth for block in blocks} == {1}
    repeatable = [block for block in blocks if block.preserves_shape]
    assert {"features.8", "features.13", "features.18"} <= {block.name for block in blocks} and len(
        repeatable
    ) >= 3


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "vgg11"])
def test_blocks_come_in_order_and_do_not_overlap(name):
    program = timm_program(name)
    blocks = find_blocks(program)
    order = {node: index for index, node in enumerate(program.graph.nodes)}
    ends = [order[block.tail] for block in blocks]
    assert ends == sorted(set(ends))
    for before, block in itertools.pairwise(blocks):
        assert order[block.head] >= order[before.tail]
        assert block.depth_end == before.depth_end + block.depth
    assert blocks[-1].depth_end == measure_costs(program).depth
    assert len({block.name for block in blocks}) == len(blocks)


def test_without_names_residual_blocks_are_found():
    """The network of a frozen archive: its weights are called constant_0, constant_1 and so on."""
    program = unnamed(timm_program("resnet18"))
    residual = [b for b in find_blocks(program) if b.depth == 2]
    assert len(residual) == 8
    assert sum(block.preserves_shape for block in residual) == 5


def test_without_names_attention_and_mlp_are_one_block_because_they_alternate():
    program = unnamed(timm_program("vit_tiny_patch16_224"))
    found = [block for block in find_blocks(program) if block.depth == 4]
    assert len(found) == 12
    assert len({block.signature for block in found}) == 1


def test_dropout_between_blocks_belongs_to_the_one_before():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(
                *(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5)) for _ in range(3))
            )
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.blocks(x))

    blocks = find_blocks(captured(Dropped(), (8,)))
    assert [block.name for block in blocks] == ["blocks.0.0", "blocks.1.0", "blocks.2.0", "head"]
    assert [operation(block.tail) for block in blocks] == ["dropout"] * 3 + ["linear"]


@pytest.mark.integration
def test_parallel_branches_are_one_block():
    """HRNet exchanges between resolutions: the stages are large blocks on the spine."""
    program = timm_program("hrnet_w18_small")
    blocks = find_blocks(program)
    assert blocks[-1].depth_end == measure_costs(program).depth
    assert max(block.depth for block in blocks) > 10


def test_a_network_without_weights_has_no_blocks():
    assert find_blocks(captured(nn.Sequential(nn.ReLU(), nn.Flatten()), (3,))) == []
