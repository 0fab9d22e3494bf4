"""The learning rate over a stage."""

from __future__ import annotations

import math

import pytest

from fitcompress.errors import RecipeError
from fitcompress.training.schedule import learning_rate


def _rates(num_steps, **arguments):
    settings = {"warmup_steps": 0.0, "peak": 2.0, "schedule": "cosine"} | arguments
    return [learning_rate(step, num_steps=num_steps, **settings) for step in range(num_steps)]


def test_cosine_starts_at_the_peak_and_would_reach_zero_after_the_last_step():
    expected = [1.0 + math.cos(math.pi * step / 10) for step in range(10)]
    assert _rates(10) == pytest.approx(expected)


def test_a_constant_rate_does_not_change():
    assert _rates(5, schedule="constant") == [2.0] * 5


def test_steps_are_at_the_epochs_of_the_benchmark():
    rates = _rates(240, schedule="steps")
    assert rates == pytest.approx([2.0] * 150 + [0.2] * 30 + [0.02] * 30 + [0.002] * 30)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_warmup_is_linear_and_ends_at_the_peak(schedule):
    rates = _rates(20, warmup_steps=4, schedule=schedule)
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert max(rates) == 2.0 and min(rates) > 0


def test_warmup_takes_at_most_half_of_the_stage():
    rates = _rates(10, warmup_steps=100)
    assert rates.index(max(rates)) in (4, 5)


def test_the_rate_falls_after_the_warmup():
    rates = _rates(30, warmup_steps=5)[5:]
    assert rates == sorted(rates, reverse=True)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(RecipeError) as caught:
        _rates(3, schedule="cosin")
    assert caught.value.code == "schedule-unknown"
    assert "'cosine'" in caught.value.advice


def test_a_single_step_gets_the_peak():
    assert _rates(1, warmup_steps=3) == [2.0]
