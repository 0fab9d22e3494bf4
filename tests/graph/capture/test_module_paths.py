"""Tensors of frozen archives are named after calls and blocks, and none look tied that are not."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import frozen, reloaded, trained_a_little
from torch import nn

from fitcompress.graph.analysis.blocks import find_blocks
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.capture.torchscript import capture_torchscript
from fitcompress.graph.program import Program, output_nodes, run_program


class Mixer(nn.Module):
    """Attention-like and MLP-like halves, each with its norm and its short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        x = x + self.mix(self.norm1(x)).softmax(-1)
        return x + self.fc2(torch.relu(self.fc1(self.norm2(x))))


class Mixers(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList([Mixer(width) for _ in range(3)])
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Convolutions(nn.Module):
    """Convolutions whose norms freezing folds away, around short cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 8, 3)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(3)]
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x.mean((2, 3)))


def frozen_program(module: nn.Module, shape: tuple[int, ...], tmp_path) -> Program:
    archive = frozen(module.eval(), torch.randn(1, *shape))
    return capture_torchscript(reloaded(archive, tmp_path / "archive.pt"), shape)


def names_of_blocks(program: Program) -> list[str]:
    ends = output_nodes(program.graph)
    return [block.name for block in find_blocks(program)[1:] if block.tail not in ends]


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Mixers, (5, 6)), (Convolutions, (6, 8, 8))],
    ids=["halves that alternate", "convolutions"],
)
def test_a_frozen_archive_has_the_blocks_of_its_model_under_the_same_names(make, shape, tmp_path):
    module = trained_a_little(make())
    program = frozen_program(module, shape, tmp_path)
    eager = capture_module(module, (torch.randn(2, *shape),))
    assert (
        names_of_blocks(program) == names_of_blocks(eager) == ["blocks.0", "blocks.1", "blocks.2"]
    )
    x = torch.randn(3, *shape)
    torch.testing.assert_close(run_program(program, x)[0], run_program(eager, x)[0])


def test_tensors_outside_the_blocks_are_named_after_their_calls(tmp_path):
    program = frozen_program(Mixers(), (5, 6), tmp_path)
    outside = {name for name in program.tensors if not name.startswith("blocks.")}
    assert outside == {"linear.weight", "linear.bias", "linear_10.weight", "linear_10.bias"}


def test_equal_constants_that_freezing_merged_are_no_ties(tmp_path):
    module = Mixers()
    for child in module.modules():
        if isinstance(child, nn.Linear):
            nn.init.zeros_(child.bias)
    program = frozen_program(module, (5, 6), tmp_path)
    assert len(program.trainable) == len(list(module.parameters()))
    users = [len(node.users) for node in program.graph.nodes if node.op == "get_attr"]
    assert set(users) == {1}


def test_a_norm_whose_constants_are_one_and_the_same_gets_one_each(tmp_path):
    """Weight and running variance are ones, bias and running mean zeros: freezing merges them."""
    module = nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4))
    program = frozen_program(module, (6,), tmp_path)
    norm = {name for name in program.tensors if "batch_norm" in name}
    roles = {name.rpartition(".")[2] for name in norm}
    assert roles == {"weight", "bias", "running_mean", "running_var"}
    assert {name for name in program.trainable if "batch_norm" in name} == {
        name for name in norm if not name.rpartition(".")[2].startswith("running")
    }


def test_a_tied_weight_stays_tied(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return self.inner(self.inner(x).relu())

    program = frozen_program(Tied(), (6,), tmp_path)
    assert sorted(tensor.ndim for tensor in program.tensors.values()) == [1, 2]
