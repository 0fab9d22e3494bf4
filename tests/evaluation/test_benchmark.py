"""The benchmark itself, with clocks and networks that write down who was called when."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import quantile_test
from torch import Tensor, nn

from fitcompress.evaluation.benchmark import (
    Runner,
    latency,
    paired_latency,
    peak_memory_bytes,
    torch_runner,
)


class FakeTime:
    """A clock that moves only when a runner runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def clock(self) -> float:
        self.calls.append("clock")
        return self.now

    def runner(self, name: str, seconds: float) -> Runner:
        def run(batch_size: int) -> None:
            self.calls.append(name)
            self.now += seconds * batch_size

        return Runner(run, lambda batch_size: batch_size, lambda: self.calls.append("sync"))


def test_the_clock_is_read_only_when_the_device_has_finished() -> None:
    time = FakeTime()
    paired_latency({"a": time.runner("a", 0.1)}, (1,), num_warmup=0, num_runs=1, clock=time.clock)
    assert time.calls == ["sync", "clock", "a", "sync", "clock"]


def test_runners_take_turns_after_a_warm_up() -> None:
    time = FakeTime()
    runners = {"a": time.runner("a", 0.1), "b": time.runner("b", 0.1)}
    paired_latency(runners, (1,), num_warmup=2, num_runs=2, clock=time.clock)
    assert [call for call in time.calls if call in "ab"] == list("aabb" + "abab")


def test_median_and_speedup() -> None:
    time = FakeTime()
    runners = {"teacher": time.runner("t", 0.4), "student": time.runner("s", 0.1)}
    measured = paired_latency(runners, (1, 4), num_runs=7, budget_s=1e9, clock=time.clock)
    assert measured["student"]["1"].to_dict() == {
        "median_ms": pytest.approx(100),
        "p95_ms": pytest.approx(100),
        "n": 7,
        "samples_ms": pytest.approx([100] * 7),
        "images_per_s": pytest.approx(10),
        "warmup": 3,
        "threads": torch.get_num_threads(),
        "device": "cpu",
        "speedup": pytest.approx(4),
        "speedup_range": pytest.approx([4, 4]),
    }
    assert measured["teacher"]["4"].median_ms == pytest.approx(1600)
    assert measured["teacher"]["4"].images_per_s == pytest.approx(2.5)
    assert measured["teacher"]["4"].speedup == 1.0


@pytest.mark.parametrize("num_runs", [6, 7, 20, 50])
def test_the_range_of_the_speedup_is_scipys_interval_of_the_median(num_runs: int) -> None:
    time, generator = FakeTime(), np.random.default_rng(num_runs)
    durations = generator.lognormal(size=num_runs)
    ahead = iter([1.0, *durations])

    def run(_: int) -> None:
        time.now += next(ahead)

    runners = {"one": time.runner("one", 1.0), "other": Runner(run, lambda n: n)}
    measured = paired_latency(
        runners, (1,), num_warmup=1, num_runs=num_runs, budget_s=1e9, clock=time.clock
    )
    ratios = quantile_test(1 / durations, p=0.5)
    expected = ratios.confidence_interval(confidence_level=0.95)
    assert measured["other"]["1"].speedup_range == pytest.approx([expected.low, expected.high])


def test_the_range_of_few_rounds_is_all_of_them() -> None:
    time = FakeTime()
    ahead = iter([0.5, 1.0, 0.25, 2.0])

    def run(_: int) -> None:
        time.now += next(ahead)

    runners = {"one": time.runner("one", 1.0), "other": Runner(run, lambda n: n)}
    measured = paired_latency(runners, (1,), num_warmup=0, num_runs=4, clock=time.clock)
    assert measured["other"]["1"].speedup_range == pytest.approx([0.5, 4.0])


def test_the_95th_percentile_is_an_observation() -> None:
    time = FakeTime()
    durations = iter([0.0, *range(1, 21)])

    def run(_: int) -> None:
        time.now += next(durations)

    measured = latency(
        run, lambda n: n, (1,), num_warmup=1, num_runs=20, budget_s=1e9, clock=time.clock
    )
    assert measured["1"].p95_ms == 19_000
    assert measured["1"].median_ms == 10_500


def test_the_budget_ends_the_rounds_but_not_before_five() -> None:
    time = FakeTime()
    measured = latency(time.runner("a", 10).run, lambda n: n, (1,), budget_s=1, clock=time.clock)
    assert measured["1"].n == 5


def test_a_network_is_timed_in_eval_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool, int]] = []

    class Spy(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((self.training, torch.is_grad_enabled(), len(images)))
            return images

    spy = Spy()
    paired_latency({"spy": torch_runner(spy, (1, 2, 2))}, (3,), num_warmup=1, num_runs=1)
    assert seen == [(False, False, 3)] * 2
    assert spy.training


def test_peak_memory_counts_weights_input_and_what_is_alive_at_once() -> None:
    network = nn.Sequential(
        nn.Linear(10, 100, bias=False), nn.ReLU(), nn.Linear(100, 5, bias=False)
    )
    images = torch.zeros(2, 10)
    # Alive together at the worst moment: the first map and its ReLU, 2 x 100 floats each.
    expected = 4 * (1000 + 500 + 20 + 200 + 200)
    assert peak_memory_bytes(network, images) == expected


def test_peak_memory_does_not_count_views_twice() -> None:
    class Views(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return (images + 1).view(-1).view(4, 5).flatten()

    assert peak_memory_bytes(Views(), torch.zeros(20)) == 4 * (20 + 20)
