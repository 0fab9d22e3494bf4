"""Running sums and the first bad step."""

from __future__ import annotations

import pytest
import torch

from fitcompress.errors import TrainingError
from fitcompress.training.meter import LossMeter

CPU = torch.device("cpu")


def test_means_are_those_of_all_steps_in_float64():
    meter = LossMeter(CPU)
    values = [0.1, 0.2, 1e8]
    for step, value in enumerate(values, 1):
        meter.add({"loss": torch.tensor(value, dtype=torch.float64), "lr": value}, step)
    assert meter.means() == {"loss": sum(values) / 3, "lr": sum(values) / 3}


def test_the_first_step_that_was_not_finite_is_named():
    meter = LossMeter(CPU)
    for step, value in enumerate([1.0, float("inf"), 1.0, float("nan")], 1):
        meter.add({"loss": torch.tensor(value)}, step)
    with pytest.raises(TrainingError) as caught:
        meter.check("stage1", 7)
    assert caught.value.code == "loss-not-finite"
    assert caught.value.facts == {"stage": "stage1", "epoch": 7, "step": 2}


def test_finite_losses_pass():
    meter = LossMeter(CPU)
    meter.add({"loss": torch.tensor(1.0)}, 1)
    meter.check("stage1", 1)


def test_a_restored_meter_continues_exactly():
    whole, first, second = LossMeter(CPU), LossMeter(CPU), LossMeter(CPU)
    values = torch.rand(10)
    for step, value in enumerate(values, 1):
        whole.add({"loss": value}, step)
        (first if step <= 4 else second).add({"loss": value}, step)
        if step == 4:
            second.restore(first.state())
    assert second.means() == whole.means()
