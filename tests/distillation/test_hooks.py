"""Hooks that record the outputs of a network's layers, and leave no trace."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.small_nets import Residual
from torch import nn

from fitcompress.distillation.hooks import record_outputs


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


def test_layers_have_the_order_in_which_they_finish():
    outputs = record_outputs(Residual(), torch.zeros(2, 3, 8, 8))

    assert [(name, tuple(value.shape)) for name, value in outputs.items()] == [
        ("stem", (2, 8, 8, 8)),
        ("norm", (2, 8, 8, 8)),
        ("block.conv1", (2, 8, 8, 8)),
        ("block.act", (2, 8, 8, 8)),
        ("block.conv2", (2, 8, 8, 8)),
        ("block.norm", (2, 8, 8, 8)),
        ("block", (2, 8, 8, 8)),
        ("drop", (2, 8)),
        ("head", (2, 5)),
    ]


def test_only_the_outputs_of_named_layers_are_recorded():
    network, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    outputs = record_outputs(network, x, names=["stem", "head", "nowhere"])

    assert list(outputs) == ["stem", "head"]
    with torch.no_grad():
        assert torch.equal(outputs["stem"], network.stem(x))
        assert torch.equal(outputs["head"], network(x))


def test_shared_layers_count_once_and_layers_without_a_tensor_not_at_all():
    network, x = Pair(), torch.randn(2, 4)
    outputs = record_outputs(network, x)

    assert list(outputs) == ["shared"]
    assert torch.equal(outputs["shared"], network.shared(x))


@pytest.mark.parametrize(
    ("network", "outcome"),
    [
        (Residual(), nullcontext()),
        (
            Broken(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
            pytest.raises(RuntimeError, match="broken"),
        ),
    ],
    ids=["success", "error"],
)
def test_hooks_flags_and_statistics_are_restored(network, outcome):
    network.train()
    next(network.children()).eval()
    flags = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    with outcome:
        record_outputs(network, torch.randn(2, 3, 8, 8))

    assert num_hooks(network) == 0
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_no_gradient_is_recorded():
    seen = []
    network = nn.Sequential(nn.Linear(4, 4))
    handle = network[0].register_forward_hook(lambda m, i, output: seen.append(output))

    record_outputs(network, torch.zeros(2, 4))

    handle.remove()
    assert not seen[0].requires_grad
