"""The moving average of the weights, against the recursion."""

from __future__ import annotations

import pytest
import torch
from helpers.toy_training import digest, make_distill, run_distill, summary
from torch import nn

from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.ema import WeightAverage


def _weights(network) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in network.parameters()])


def test_the_average_is_the_recursion_with_a_decay_that_warms_up():
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    average, expected = WeightAverage(network, 0.9), _weights(network)
    for step in range(1, 40):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(step)
        decay = 0.0 if step == 1 else min(0.9, 1 - step**-0.75)
        expected = decay * expected + (1 - decay) * _weights(network)
    own = _weights(network)
    with average.applied():
        torch.testing.assert_close(_weights(network), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(_weights(network), own)
    average.apply()
    torch.testing.assert_close(_weights(network), expected, rtol=1e-5, atol=1e-6)


def test_a_stage_ends_with_the_average_and_evaluates_it(tmp_path):
    plain, last = run_distill(tmp_path / "plain.pt")
    result, objective = run_distill(tmp_path / "ema.pt", optim=OptimRecipe(lr=0.01, ema=0.9))
    assert [r["losses"] for r in result.history] == [r["losses"] for r in plain.history]
    assert digest(objective.trained) != digest(last.trained)
    stored = torch.load(tmp_path / "ema.pt")["average"]
    found = objective.trained.state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())
    assert result.held_out != plain.held_out


@pytest.mark.parametrize("first", [1, 2])
def test_a_stage_that_is_resumed_ends_with_the_same_average(first, tmp_path):
    optim = OptimRecipe(lr=0.01, ema=0.9, schedule="constant")
    whole = summary(*_run(tmp_path / "whole.pt", optim, 3))
    path, objective = tmp_path / "parts.pt", make_distill()
    interrupted_after(first, objective, path, optim)
    assert summary(*_run(path, optim, 3, resume=True)) == whole


def interrupted_after(epochs, objective, path, optim):
    """Stops a run of three epochs by an error after `epochs` epochs."""

    class Stop(Exception):
        pass

    def emit(event):
        if type(event).__name__ == "EpochFinished" and event.epoch == epochs:
            raise Stop

    with pytest.raises(Stop):
        run_distill(path, objective=objective, epochs=3, optim=optim, emit=emit)


def _run(path, optim, epochs, **more):
    result, objective = run_distill(path, epochs=epochs, optim=optim, **more)
    return result, objective.trained
