"""Constants of one element become numbers where this changes no bit."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import reloaded, traced
from torch import nn

from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.capture.torchscript import capture_torchscript
from fitcompress.graph.program import Program, run_program
from fitcompress.graph.shapes import propagate_shapes


class Scaled(nn.Module):
    """Holds a number as a tensor that is neither parameter nor buffer."""

    def __init__(self, function, number) -> None:
        super().__init__()
        self.function, self.number = function, torch.tensor(number)

    def forward(self, x):
        return self.function(x, self.number)


def second_arguments(program: Program) -> list[object]:
    return [n.args[1] for n in program.graph.nodes if n.op == "call_function" and len(n.args) > 1]


@pytest.mark.parametrize("number", [0.1, 3])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "pow"])
def test_a_number_stored_as_a_tensor_becomes_a_literal(name, number, tmp_path):
    module = Scaled(getattr(torch, name), number)
    archive = reloaded(traced(module, torch.rand(1, 4)), tmp_path / "archive.pt")
    program = capture_torchscript(archive, (4,))
    assert not program.tensors
    assert second_arguments(program) == [torch.tensor(number).item()]
    x = torch.rand(3, 4)
    assert torch.equal(run_program(program, x)[0], module(x))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [([0.5, 2.0], torch.float32), ([0.5], torch.float32), (0.5, torch.int64)],
    ids=["two numbers", "a dimension", "another type"],
)
def test_other_constants_stay_tensors(value, dtype):
    module, x = Scaled(torch.mul, value), torch.ones(3, 2, dtype=dtype)
    program = capture_module(module, (x,))
    assert len(program.tensors) == 1
    assert torch.equal(run_program(program, x)[0], module(x))


def test_a_learnt_number_stays_a_weight():
    module = Scaled(torch.mul, 1)
    module.number = nn.Parameter(torch.tensor(0.5))
    assert capture_module(module, (torch.ones(2, 4),)).trainable == {"number"}


def test_a_number_of_repeats_from_a_trace_is_a_number(tmp_path):
    class Repeats(nn.Module):
        def forward(self, x):
            return x[:, :, None].repeat_interleave(x.shape[1] // 2, dim=1).sum(-1)

    archive = reloaded(traced(Repeats(), torch.rand(1, 4)), tmp_path / "archive.pt")
    program = capture_torchscript(archive, (4,))
    calls = {node.target: node.args for node in program.graph.nodes}
    assert calls[torch.ops.aten.repeat_interleave.self_int][1:] == (2, 1)
    assert propagate_shapes(program, 7)["sum_1"] == (7, 8)
