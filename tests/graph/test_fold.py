"""Folding leaves the outputs unchanged, and gives a reason for what is not folded."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import Residual, trained_a_little
from torch import nn

from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.fold import fold_norms
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, operation, run_program


def with_statistics(module: nn.Module) -> nn.Module:
    """The module in eval mode, with no batch norm near the identity."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean = torch.randn_like(norm.running_mean)
            norm.running_var = torch.rand_like(norm.running_var) + 0.5
            if norm.affine:
                nn.init.normal_(norm.weight)
                nn.init.normal_(norm.bias)
    return module.eval()


def norms(program: Program) -> list[str]:
    return [node.name for node in program.graph.nodes if operation(node) == "batch_norm"]


class Shared(nn.Module):
    """One convolution before two batch norms: folding it in place would serve neither."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.second(self.conv(self.first(self.conv(x))))


IMAGE, ROW, TRACK = (3, 8, 8), (6,), (4, 12)
FOLDED = {
    "convolution": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), IMAGE),
    "no bias": (lambda: nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), IMAGE),
    "not affine": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, affine=False)),
        IMAGE,
    ),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)), IMAGE),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 5, 3), nn.BatchNorm2d(5)), IMAGE),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(4, 5, 3), nn.BatchNorm1d(5)), TRACK),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)), ROW),
    "shared": (Shared, IMAGE),
}


@pytest.mark.parametrize(("make", "shape"), FOLDED.values(), ids=FOLDED)
def test_a_folded_network_computes_the_same_without_batch_norms(make, shape):
    module, x = with_statistics(make()), torch.randn(4, *shape)
    program = capture_module(module, (x,))
    before = str(program.graph)
    folded = fold_norms(program)
    expected = module(x).detach()
    assert norms(program) and not norms(folded.program) and not folded.refused
    assert folded.num_folded == len(norms(program)) and str(program.graph) == before
    # float32 sums in another order; the constants are computed in float64
    largest = expected.abs().max()
    for found in (run_program(folded.program, x)[0], build_network(folded.program)(x)):
        assert (found - expected).abs().max() <= 2e-6 * largest + 1e-6


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y


class Standardized(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        weight = self.conv.weight - self.conv.weight.mean()
        return self.norm(nn.functional.conv2d(x, weight))


REFUSED = {
    "first": (lambda: nn.Sequential(nn.BatchNorm2d(3)), IMAGE, "no convolution"),
    "used twice": (UsedTwice, IMAGE, "also used without it"),
    "computed weights": (Standardized, IMAGE, "are computed"),
    "grouped transposed": (
        lambda: nn.Sequential(nn.ConvTranspose2d(3, 3, 3, groups=3), nn.BatchNorm2d(3)),
        IMAGE,
        "has groups",
    ),
    "other channels": (
        lambda: nn.Sequential(nn.Linear(12, 5), nn.BatchNorm1d(4)),
        TRACK,
        "not the outputs",
    ),
    "by its batch": (
        lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, track_running_stats=False)),
        IMAGE,
        "by batch statistics",
    ),
}


@pytest.mark.parametrize(("make", "shape", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_batch_norm_that_cannot_be_folded_stays_and_says_why(make, shape, reason):
    module, x = make().eval(), torch.randn(4, *shape)
    program = capture_module(module, (x,))
    folded = fold_norms(program)
    assert list(folded.refused) == norms(folded.program) == norms(program)
    assert reason in folded.refused[norms(program)[0]]
    assert torch.equal(run_program(folded.program, x)[0], module(x).detach())


def test_a_value_that_is_kept_is_still_there():
    module, x = trained_a_little(Residual()), torch.randn(2, 3, 8, 8)
    program = capture_module(module, (x,))
    norm = next(node for node in program.graph.nodes if node.name == norms(program)[0])
    assert not fold_norms(program, kept=[norm.name]).refused
    source = norm.args[0].name
    assert "also used without it" in fold_norms(program, kept=[source]).refused[norm.name]
