"""A fixed batch size becomes dynamic in the initial states of recurrent calls."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import export_to, quietly
from torch import nn

from fitcompress.errors import CaptureError
from fitcompress.graph.capture.exported import capture_exported
from fitcompress.graph.program import run_program


class Rows(nn.Module):
    """Reads each row of an image as a sequence: rows times batch are the batch of the call."""

    def __init__(self, kind: type[nn.Module], *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.recurrent = kind(3, 4, batch_first=batch_first, bidirectional=True)

    def forward(self, x):
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(batch * height, width, channels)
        if self.batch_first:
            return self.recurrent(rows)[0].reshape(batch, height, width, -1)
        found = self.recurrent(rows.transpose(0, 1))[0].transpose(0, 1)
        return found.reshape(batch, height, width, -1)


class OwnState(nn.Module):
    """Starts each sample of its one batch size from another state."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(3, 4, batch_first=True)
        self.register_buffer("state", torch.randn(1, 2, 4))

    def forward(self, x):
        return self.recurrent(x, self.state)[0]


def exported(module: nn.Module, example: torch.Tensor, path) -> torch.export.ExportedProgram:
    with quietly():
        return torch.export.load(export_to(path, module, example, dynamic=False))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_states_of_a_recurrent_call_follow_the_batch(kind, batch_first, batch_size, tmp_path):
    module = Rows(kind, batch_first=batch_first).eval()
    example = torch.randn(batch_size, 3, 5, 6)
    program = capture_exported(exported(module, example, tmp_path / "rows.pt2"))
    x = torch.randn(7, 3, 5, 6)
    with torch.no_grad():
        torch.testing.assert_close(run_program(program, x)[0], module(x))


def test_states_that_differ_from_sample_to_sample_are_refused_by_the_call(tmp_path):
    program = exported(OwnState().eval(), torch.randn(2, 5, 3), tmp_path / "own.pt2")
    with pytest.raises(CaptureError) as caught:
        capture_exported(program)
    assert caught.value.code == "batch-size-fixed"
    assert "'aten.gru.input' differ between samples" in caught.value.facts["cause"]
