"""A recorded run keeps the values that can still be reached, and every address."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import traced
from torch import nn

from fitcompress.graph.capture import liveness
from fitcompress.graph.capture.liveness import KeptValues
from fitcompress.graph.capture.torchscript import capture_torchscript


class Mixed(nn.Module):
    """Views, branches, a value that is used late, and one that is written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 24) for _ in range(6))
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x):
        first = x * self.scale
        for layer in self.layers:
            q, k, v = layer(x).chunk(3, dim=-1)
            x = (q.transpose(1, 2) @ k).softmax(-1)
            x = (v @ x).relu_() + 1
        return x + first


def capture():
    torch.manual_seed(0)
    return capture_torchscript(traced(Mixed().eval(), torch.randn(2, 5, 8)), (5, 8))


def test_releasing_values_does_not_change_the_graph(monkeypatch):
    whole = capture()
    gone = []
    monkeypatch.setattr(liveness, "_SWEEP_BYTES", 0)
    forget = KeptValues.__init__

    def watched(self, own, forgets):
        forget(self, own, lambda value: (gone.append(value.shape), forgets(value)))

    monkeypatch.setattr(KeptValues, "__init__", watched)
    swept = capture()
    assert str(swept.graph) == str(whole.graph)
    assert len(gone) > 100  # two runs of six layers, about ten values each


@pytest.mark.parametrize("holder", ["tensor", "view", "nothing"])
def test_values_that_can_be_reached_are_kept(monkeypatch, holder):
    monkeypatch.setattr(liveness, "_SWEEP_BYTES", 0)
    gone = []
    values = KeptValues(own=(), forget=lambda value: gone.append(tuple(value.shape)))
    value = torch.rand(3, 4)
    hold = {"tensor": lambda v: v, "view": lambda v: v.view(4, 3), "nothing": lambda v: None}
    held = hold[holder](value)
    values.add(value)
    del value
    values.add(torch.rand(5))
    assert gone == ([(3, 4)] if held is None else [])


def test_the_address_of_a_released_value_is_not_reused(monkeypatch):
    monkeypatch.setattr(liveness, "_SWEEP_BYTES", 0)
    values, seen = KeptValues(own=(), forget=lambda value: None), set()
    for _ in range(200):
        value = torch.rand(7)
        seen.add(value.untyped_storage()._cdata)
        values.add(value)
        del value
    assert len(seen) == 200
