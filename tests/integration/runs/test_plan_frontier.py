"""`plan --pareto`: the costs of students of several depths and widths, measured for real."""

from __future__ import annotations

import json

import pytest

import fitcompress
from fitcompress.evaluation.benchmark import latency
from fitcompress.events import Event, StageFinished
from fitcompress.student import frontier

SETTINGS = {
    "teacher.source": "helpers.toy_runs:make_net",
    "teacher.input_size": "3,12,12",
    "teacher.num_classes": 3,
}
DEPTHS, WIDTHS = (1.0, 1.5, 2.0, 3.0), (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


def costs_of_plan(depth_mult: float, width_mult: float) -> dict[str, int]:
    """The costs of a single student, as `plan` counts them."""
    mults = {"student.depth_mult": depth_mult, "student.width_mult": width_mult}
    recipe = fitcompress.resolve_recipe(settings=SETTINGS | mults)
    return fitcompress.plan(recipe)["student"]


def test_the_frontier_has_the_costs_of_plan_and_latencies(monkeypatch):
    def quick_latency(*args, budget_s, **options):
        return latency(*args, budget_s=0.05, **options)  # else 24 students take half a minute

    monkeypatch.setattr(frontier, "latency", quick_latency)
    events: list[Event] = []

    rows = fitcompress.plan_frontier(
        fitcompress.resolve_recipe(settings=SETTINGS), emit=events.append
    )

    assert json.loads(json.dumps(rows)) == rows
    places = {(row["depth_mult"], row["width_mult"]): row for row in rows}
    assert list(places) == [(depth, width) for depth in DEPTHS for width in WIDTHS]
    for place in ((1.0, 1.0), (1.5, 0.3), (3.0, 0.1)):
        expected = costs_of_plan(*place)
        assert {name: places[place][name] for name in expected} == expected
    assert all(row["latency_ms"] > 0 for row in rows)
    assert places[1.0, 1.0]["latency_ms"] != places[3.0, 0.1]["latency_ms"]
    (finished,) = (event for event in events if isinstance(event, StageFinished))
    assert finished.stage == "frontier"


def test_the_frontier_grows_with_depth_and_width():
    small, deep, wide = costs_of_plan(1.0, 0.3), costs_of_plan(2.0, 0.3), costs_of_plan(1.0, 0.5)

    assert small["depth"] == wide["depth"] < deep["depth"]
    assert small["macs"] < min(deep["macs"], wide["macs"])
    teacher = fitcompress.plan(fitcompress.resolve_recipe(settings=SETTINGS))["teacher"]
    assert costs_of_plan(1.0, 1.0) == pytest.approx(teacher)
