"""Decomposed calls compute the same values."""

from __future__ import annotations

import pytest
import torch
from helpers.captured import captured
from torch import nn

from fitcompress.exporters.onnx_decompositions import decomposed_for_onnx
from fitcompress.graph.lift import build_network


class Windows(nn.Module):
    """Attention within windows, with any number of dimensions before the last two."""

    def __init__(self, leading: tuple[int, ...], has_mask: bool):
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.mask = nn.Parameter(torch.randn(*leading[1:], 4, 4)) if has_mask else None
        self.leading = leading

    def forward(self, x):
        q, k, v = self.qkv(x.view(-1, *self.leading, 4, 6)).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, self.mask).flatten(1)


class PerSample(nn.Module):
    """A convolution whose weights depend on the sample."""

    def __init__(self, groups: int, **options: int):
        super().__init__()
        self.mix = nn.Linear(4, 2)
        self.weight = nn.Parameter(torch.randn(2, 6 * (4 // groups) * 9))
        self.groups, self.options = groups, options

    def forward(self, x):
        size, channels, *places = x.shape
        weight = (self.mix(x.mean((2, 3))) @ self.weight).view(-1, channels // self.groups, 3, 3)
        maps = nn.functional.conv2d(
            x.reshape(1, -1, *places), weight, groups=size * self.groups, **self.options
        )
        return maps.view(size, 6, *maps.shape[2:])


class Clipped(nn.Module):
    """Clamps to bounds that are tensors."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.register_buffer("least", torch.tensor(-0.2))
        self.register_buffer("most", torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, x):
        return torch.clamp(torch.clamp(self.map(x), self.least, self.most), max=self.most)


NETWORKS = {
    "3 dimensions": (Windows((), False), (24,)),
    "3 dimensions, mask": (Windows((), True), (24,)),
    "5 dimensions": (Windows((3, 2), False), (144,)),
    "5 dimensions, mask": (Windows((3, 2), True), (144,)),
    "bounds": (Clipped(), (4,)),
    "weights by sample": (PerSample(1, padding=1), (4, 7, 5)),
    "grouped weights by sample": (PerSample(2, stride=2, dilation=2), (4, 7, 9)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_decompositions_compute_the_same(name):
    module, shape = NETWORKS[name]
    network = build_network(captured(module, shape)).eval()
    plain = decomposed_for_onnx(network)
    assert plain is not network
    for batch_size in (1, 3):
        x = torch.randn(batch_size, *shape)
        torch.testing.assert_close(plain(x), module(x))
        torch.testing.assert_close(network(x), module(x))


def test_a_network_without_such_calls_is_left_alone():
    network = build_network(captured(nn.Sequential(nn.Conv2d(3, 4, 3)), (3, 8, 8)))
    assert decomposed_for_onnx(network) is network
