"""The algebra of axes against numpy: random programs of reshapes, transposes, splits, joins and
sums.

Whatever indices are kept for each atom that is free, running a program on the kept part of its
inputs must give the kept part of its results.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from random import Random

import numpy as np
import pytest
from helpers.captured import kept_places
from hypothesis import given, settings
from hypothesis import strategies as st

from fitcompress.graph.axes.algebra import Atom, Axis, AxisAlgebra


@dataclass
class Trace:
    """A program over arrays and its axes. Each step makes the next values from earlier ones."""

    algebra: AxisAlgebra = field(default_factory=AxisAlgebra)
    arrays: list[np.ndarray] = field(default_factory=list)
    axes: list[list[Axis]] = field(default_factory=list)
    steps: list[tuple] = field(default_factory=list)

    def add(self, step: tuple, arrays: list[np.ndarray], axes: list[list[Axis]]) -> None:
        self.steps.append(step)
        self.arrays += arrays
        self.axes += axes

    def run(self, sizes: dict[Atom, int], inputs: list[np.ndarray]) -> list[np.ndarray]:
        """The program again with every literal taken from its axis."""
        values: list[np.ndarray] = []
        leaves = iter(inputs)
        for kind, *arguments in self.steps:
            values += STEPS[kind](self, sizes, values, leaves, *arguments)
        return values


def run_leaf(trace, sizes, values, leaves):
    return [next(leaves)]


def run_reshape(trace, sizes, values, leaves, source, axes):
    return [values[source].reshape([trace.algebra.resize(axis, sizes) for axis in axes])]


def run_transpose(trace, sizes, values, leaves, source, order):
    return [values[source].transpose(order)]


def run_split(trace, sizes, values, leaves, source, dim, axes):
    bounds = np.cumsum([trace.algebra.resize(axis, sizes) for axis in axes])
    assert bounds[-1] == values[source].shape[dim]
    return np.split(values[source], bounds[:-1], dim)


def run_join(trace, sizes, values, leaves, sources, dim):
    return [np.concatenate([values[source] for source in sources], dim)]


def run_add(trace, sizes, values, leaves, one, other):
    assert values[one].shape == values[other].shape
    return [values[one] * 31 + values[other]]


STEPS = {
    "leaf": run_leaf,
    "reshape": run_reshape,
    "transpose": run_transpose,
    "split": run_split,
    "join": run_join,
    "add": run_add,
}


def draw_leaf(trace: Trace, random: Random, shape=None) -> None:
    shape = shape or random.choice([[4, 6], [6, 4], [2, 12], [3, 4, 2], [24], [12, 1], [5, 3], [8]])
    array = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + 1000 * len(trace.arrays)
    axes = [trace.algebra.new(size, frozen=random.choice(["", "", "", "fixed"])) for size in shape]
    trace.add(("leaf",), [array], [axes])


def draw_reshape(trace: Trace, random: Random) -> None:
    source = random.randrange(len(trace.arrays))
    array = trace.arrays[source]
    shape, left = [], array.size
    while left > 1 and len(shape) < 3:
        shape.append(random.choice([d for d in range(1, left + 1) if left % d == 0]))
        left //= shape[-1]
    shape += [left] if left > 1 or not shape else []
    axes = trace.algebra.regroup(trace.axes[source], shape)
    trace.add(("reshape", source, axes), [array.reshape(shape)], [axes])


def draw_flatten(trace: Trace, random: Random) -> None:
    source = random.randrange(len(trace.arrays))
    axes = trace.algebra.regroup(trace.axes[source], [trace.arrays[source].size])
    trace.add(("reshape", source, axes), [trace.arrays[source].reshape(-1)], [axes])


def draw_transpose(trace: Trace, random: Random) -> None:
    source = random.randrange(len(trace.arrays))
    order = list(range(trace.arrays[source].ndim))
    random.shuffle(order)
    axes = [trace.axes[source][dim] for dim in order]
    trace.add(("transpose", source, order), [trace.arrays[source].transpose(order)], [axes])


def draw_split(trace: Trace, random: Random) -> None:
    source = random.randrange(len(trace.arrays))
    array, axes = trace.arrays[source], trace.axes[source]
    dim = random.randrange(array.ndim)
    size = array.shape[dim]
    if size == 1:
        return
    bounds = sorted(random.sample(range(1, size), random.choice([1, min(2, size - 1)])))
    pieces = [end - start for start, end in itertools.pairwise([0, *bounds, size])]
    parts = trace.algebra.split(axes[dim], pieces)
    results = [[*axes[:dim], part, *axes[dim + 1 :]] for part in parts]
    trace.add(("split", source, dim, parts), np.split(array, bounds, dim), results)


def draw_join(trace: Trace, random: Random) -> None:
    first = random.randrange(len(trace.arrays))
    dim = random.randrange(trace.arrays[first].ndim)
    rest = np.delete(trace.arrays[first].shape, dim)
    fitting = [
        index
        for index, array in enumerate(trace.arrays)
        if array.ndim > dim and np.array_equal(np.delete(array.shape, dim), rest)
    ]
    sources = [first, random.choice(fitting)]
    aligned = list(zip(*(trace.axes[source] for source in sources), strict=True))
    axes = []
    for index, pair in enumerate(aligned):
        if index != dim:
            trace.algebra.unify(*pair)
        axes.append(trace.algebra.join(pair) if index == dim else pair[0])
    joined = np.concatenate([trace.arrays[source] for source in sources], dim)
    if joined.size < 300:
        trace.add(("join", sources, dim), [joined], [axes])


def draw_add(trace: Trace, random: Random) -> None:
    one = random.randrange(len(trace.arrays))
    shape = trace.arrays[one].shape
    same = [i for i, array in enumerate(trace.arrays) if array.shape == shape and i != one]
    if not same:
        same = [len(trace.arrays)]
        draw_leaf(trace, random, list(shape))
    other = random.choice(same)
    for pair in zip(trace.axes[one], trace.axes[other], strict=True):
        trace.algebra.unify(*pair)
    array = trace.arrays[one] * 31 + trace.arrays[other]
    trace.add(("add", one, other), [array], [trace.axes[one]])


def draw_program(random: Random) -> Trace:
    trace = Trace()
    draw_leaf(trace, random)
    draws = [draw_leaf, draw_reshape, draw_transpose, draw_split, draw_join, draw_add]
    for _ in range(random.randrange(2, 14)):
        random.choice([*draws, draw_leaf, draw_flatten, draw_add])(trace, random)
    return trace


def keep(trace: Trace, index: int, kept: dict[Atom, list[int]]) -> np.ndarray:
    places = [kept_places(trace.algebra, axis, kept) for axis in trace.axes[index]]
    return trace.arrays[index][np.ix_(*places)]


def draw_kept(trace: Trace, random: Random) -> dict[Atom, list[int]]:
    found = {a: None for axes in trace.axes for axis in axes for a in trace.algebra.atoms(axis)}
    return {
        atom: sorted(random.sample(range(atom.size), random.randrange(1, atom.size + 1)))
        for atom in found
        if not trace.algebra.frozen_reason(atom)
    }


@pytest.mark.integration
@given(st.randoms(use_true_random=False))
@settings(max_examples=500, deadline=None, derandomize=True)
def test_programs_commute_with_thinning(random: Random):
    trace = draw_program(random)
    kept = draw_kept(trace, random)
    sizes = {atom: len(places) for atom, places in kept.items()}
    leaves, position = [], 0
    for kind, *arguments in trace.steps:
        if kind == "leaf":
            leaves.append(keep(trace, position, kept))
        position += len(arguments[2]) if kind == "split" else 1
    for index, value in enumerate(trace.run(sizes, leaves)):
        assert value.shape == tuple(trace.algebra.resize(a, sizes) for a in trace.axes[index])
        np.testing.assert_array_equal(value, keep(trace, index, kept))


def test_random_programs_are_worth_running():
    """Guards the test above: many of its programs leave atoms free, and some refine and some
    freeze."""
    traces = [draw_program(Random(seed)) for seed in range(200)]
    free = [bool(draw_kept(trace, Random(0))) for trace in traces]
    kinds = {kind for trace in traces for kind, *_ in trace.steps}
    reasons = {
        trace.algebra.frozen_reason(atom)
        for trace in traces
        for axes in trace.axes
        for axis in axes
        for atom in trace.algebra.atoms(axis)
    }
    assert sum(free) > 100
    assert kinds == set(STEPS)
    assert any("split" in reason for reason in reasons)
    assert any("reshape" in reason for reason in reasons)
    assert any("reconciled" in reason for reason in reasons)
