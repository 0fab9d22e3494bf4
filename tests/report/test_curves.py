"""Drawings of learning curves."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from fitcompress.report.curves import Chart, Series, draw_svg, nice_ticks


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (0.61, 0.893), (1e-6, 3e-6), (5.0, 5.0), (0.0, 0.0), (-3.0, 700.0)],
)
def test_ticks_are_few_round_and_hold_all_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert 3 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert high - 1e-9 <= ticks[-1]
    assert all(math.isclose(step, steps[0], rel_tol=1e-6) for step in steps)


def test_a_line_rises_where_its_values_rise() -> None:
    chart = Chart("x < y", (Series("a & b", ((1, 0.1), (2, 0.5), (4, 0.9))),), is_share=True)
    root = ElementTree.fromstring(draw_svg(chart))
    (line,) = root.iter("polyline")
    points = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    assert xs == sorted(xs)
    assert ys == sorted(ys, reverse=True)
    # Epochs 1, 2, 4: the second step is twice as wide.
    assert (xs[2] - xs[1]) / (xs[1] - xs[0]) == pytest.approx(2, rel=1e-2)
    assert [title.text for title in root.iter("title")][-1] == "a & b, epoch 4: 90.0 %"


def test_one_epoch_is_a_dot() -> None:
    root = ElementTree.fromstring(draw_svg(Chart("x", (Series("a", ((1, 0.5),)),))))
    assert len(list(root.iter("circle"))) == 1
