"""Hooks that see what a network's layers return, and leave no trace."""

from __future__ import annotations

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


def test_layers_come_in_the_order_in_which_they_finish_with_their_shapes():
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


def test_the_outputs_are_those_of_the_layers_and_only_named_ones_are_kept():
    network, x = Residual().eval(), torch.randn(2, 3, 8, 8)
    outputs = record_outputs(network, x, names=["stem", "head", "nowhere"])

    assert list(outputs) == ["stem", "head"]
    with torch.no_grad():
        assert torch.equal(outputs["stem"], network.stem(x))
        assert torch.equal(outputs["head"], network(x))


def test_a_shared_layer_counts_once_and_what_gives_no_tensor_or_never_runs_not_at_all():
    network, x = Pair(), torch.randn(2, 4)
    outputs = record_outputs(network, x)

    assert list(outputs) == ["shared"]
    assert torch.equal(outputs["shared"], network.shared(x))


@pytest.mark.parametrize("make", [Residual, lambda: Broken(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))])
def test_hooks_flags_and_statistics_are_put_back_also_after_an_error(make):
    network = make().train()
    next(network.children()).eval()
    flags = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}

    try:
        record_outputs(network, torch.randn(2, 3, 8, 8))
    except RuntimeError as error:
        assert str(error) == "broken"

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
