"""Hooks that see what a network's layers return, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from small_nets import Residual
from torch import nn

from fitcompress.taps import record_layers


def num_hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in network.modules())


class Pair(nn.Module):
    """Calls one layer twice and returns two values from a part."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.split = Split()

    def forward(self, x):
        left, right = self.split(self.shared(self.shared(x)))
        return left + right


class Split(nn.Module):
    def forward(self, x):
        return x[:, :2], x[:, 2:]


class Broken(nn.Sequential):
    def forward(self, x):
        super().forward(x)
        raise RuntimeError("broken")


def test_layers_come_in_the_order_in_which_they_finish_with_their_shapes():
    records = record_layers(Residual(), torch.zeros(2, 3, 8, 8))

    assert [(r.name, r.kind, r.shape) for r in records] == [
        ("stem", "Conv2d", (8, 8, 8)),
        ("norm", "BatchNorm2d", (8, 8, 8)),
        ("block.conv1", "Conv2d", (8, 8, 8)),
        ("block.act", "ReLU", (8, 8, 8)),
        ("block.conv2", "Conv2d", (8, 8, 8)),
        ("block.norm", "BatchNorm2d", (8, 8, 8)),
        ("block", "Block", (8, 8, 8)),
        ("drop", "Dropout", (8,)),
        ("head", "Linear", (5,)),
    ]


def test_a_shared_layer_counts_once_and_what_gives_no_tensor_or_never_runs_not_at_all():
    records = record_layers(Pair(), torch.zeros(2, 4))

    assert [record.name for record in records] == ["shared"]


@pytest.mark.parametrize("make", [Residual, lambda: Broken(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))])
def test_hooks_flags_and_statistics_are_put_back_also_after_an_error(make):
    network = make().train()
    next(network.children()).eval()
    flags = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    try:
        record_layers(network, torch.randn(2, 3, 8, 8))
    except RuntimeError as error:
        assert str(error) == "broken"

    assert num_hooks(network) == 0
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_no_gradient_is_recorded():
    seen = []
    network = nn.Sequential(nn.Linear(4, 4))
    handle = network[0].register_forward_hook(lambda m, i, output: seen.append(output))

    record_layers(network, torch.zeros(2, 4))

    handle.remove()
    assert not seen[0].requires_grad
