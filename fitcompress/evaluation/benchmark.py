"""Measured latency and memory of networks.

The clock is read only when the device has finished. Networks that are compared take turns, so that
other load on the machine affects all of them, and the speedup is the median of the ratios of
neighboring calls, not the ratio of two medians.
"""

from __future__ import annotations

import math
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fitcompress.evaluation.accuracy import size_bytes
from fitcompress.modes import evaluating
from fitcompress.records.measurements import Timing

__all__ = ["Runner", "latency", "paired_latency", "peak_memory_bytes", "torch_runner"]


@dataclass(frozen=True)
class Runner:
    """A callable that can be timed."""

    run: Callable[[Any], Any]
    """A module is timed in eval mode; its mode is restored afterwards."""
    make_input: Callable[[int], Any]
    """Batch size -> the argument of `run`."""
    synchronize: Callable[[], None] = lambda: None
    """Waits until the device has finished."""
    device: str = "cpu"
    """The device that `run` uses."""


def torch_runner(
    network: torch.nn.Module, shape: tuple[int, int, int], device: torch.device | str = "cpu"
) -> Runner:
    """A runner of a network on `device` that takes normalized images of `shape` (C, H, W)."""
    device = torch.device(device)

    def make_input(batch_size: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch_size, *shape, generator=generator).to(device)

    return Runner(network, make_input, lambda: _synchronize(device), str(device))


def latency(
    run: Callable[[Any], Any],
    make_input: Callable[[int], Any],
    batch_sizes: Sequence[int] = (1, 32),
    **limits: Any,
) -> dict[str, Timing]:
    """The latency of one call by batch size ("1", "32"); `limits` as for `paired_latency`."""
    return paired_latency({"run": Runner(run, make_input)}, batch_sizes, **limits)["run"]


def paired_latency(
    runners: Mapping[str, Runner],
    batch_sizes: Sequence[int] = (1, 32),
    *,
    num_warmup: int = 3,
    num_runs: int = 300,
    budget_s: float = 4.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, dict[str, Timing]]:
    """The latency of one call by name and batch size, measured in turns; speedups are over the
    first runner.

    A batch size ends after `num_runs` rounds or `budget_s` seconds, but not before 5 rounds.
    """
    results: dict[str, dict[str, Timing]] = {name: {} for name in runners}
    modules = [runner.run for runner in runners.values()]
    for batch_size in batch_sizes:
        with evaluating(*modules), torch.no_grad():
            seconds = _rounds(runners, batch_size, num_warmup, num_runs, budget_s, clock)
        first = next(iter(seconds.values()))
        for name, own in seconds.items():
            timing = _timing(own, first, batch_size, num_warmup, runners[name].device)
            results[name][str(batch_size)] = timing
    return results


def peak_memory_bytes(network: torch.nn.Module, images_NCHW: Tensor) -> int:
    """Bytes of weights, input and the most activations alive at once in one forward pass.

    Counted from the tensors, so it is the same on every device and excludes the overhead of
    allocators and kernels.
    """
    counter = _LiveBytes()
    with evaluating(network), torch.no_grad(), counter:
        output = network(images_NCHW)
    del output
    return size_bytes(network) + images_NCHW.numel() * images_NCHW.element_size() + counter.peak


_MIN_ROUNDS = 5
"""Fewer have no meaningful 95th percentile; a slow network may exceed its budget."""


def _rounds(
    runners: Mapping[str, Runner],
    batch_size: int,
    num_warmup: int,
    num_runs: int,
    budget_s: float,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    inputs = {name: runner.make_input(batch_size) for name, runner in runners.items()}
    for name, runner in runners.items():
        for _ in range(num_warmup):
            runner.run(inputs[name])
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    spent = 0.0
    for index in range(num_runs):
        if index >= _MIN_ROUNDS and spent >= budget_s:
            break
        for name, runner in runners.items():
            seconds[name].append(_timed(runner, inputs[name], clock))
            spent += seconds[name][-1]
    return seconds


def _timed(runner: Runner, value: Any, clock: Callable[[], float]) -> float:
    runner.synchronize()
    start = clock()
    runner.run(value)
    runner.synchronize()
    return clock() - start


def _timing(
    seconds: list[float], first: list[float], batch_size: int, num_warmup: int, device: str
) -> Timing:
    ordered = sorted(seconds)
    # Nearest rank: the smallest observation that at least 95 % do not exceed.
    rank = -(-95 * len(ordered) // 100)
    median = statistics.median(ordered)
    speedup, speedup_range = _speedup(first, seconds)
    return Timing(
        median_ms=1000 * median,
        p95_ms=1000 * ordered[rank - 1],
        n=len(ordered),
        samples_ms=tuple(float(f"{1000 * s:.4g}") for s in seconds),
        images_per_s=batch_size / median if median > 0 else None,
        warmup=num_warmup,
        threads=torch.get_num_threads(),
        device=device,
        speedup=speedup,
        speedup_range=speedup_range,
    )


def _speedup(first: list[float], own: list[float]) -> tuple[float, tuple[float, float]]:
    """The median ratio and its 95 % interval, which assumes no distribution of the times.

    Source: David and Nagaraja, "Order Statistics", section 7.1: the number of ratios below the
    median is that of heads in fair coin flips. With fewer than 6 rounds the interval is the whole
    range, and a little too short.
    """
    ratios = sorted(a / b if b > 0 else 1.0 for a, b in zip(first, own, strict=True))
    n, rank, outside = len(ratios), 0, 0.0
    for k in range(n):
        outside += math.comb(n, k) / 2**n
        if outside > 0.025:
            break
        rank = k
    return statistics.median(ratios), (ratios[rank], ratios[n - 1 - rank])


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


class _LiveBytes(TorchDispatchMode):
    """Follows the storages allocated inside it; `peak` is the most bytes alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive = 0
        self._owners: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outside = {
            _storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)
        }
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._follow(leaf, outside)
        return output

    def _follow(self, tensor: Tensor, outside: set[int]) -> None:
        storage = _storage(tensor)
        if storage not in self._owners:
            if storage in outside:
                return  # a view of a weight or of the input
            self._alive += tensor.untyped_storage().nbytes()
            self.peak = max(self.peak, self._alive)
        self._owners[storage] = self._owners.get(storage, 0) + 1
        weakref.finalize(tensor, self._release, storage, tensor.untyped_storage().nbytes())

    def _release(self, storage: int, num_bytes: int) -> None:
        self._owners[storage] -= 1
        if self._owners[storage] == 0:
            del self._owners[storage]
            self._alive -= num_bytes


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
