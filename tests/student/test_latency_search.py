"""Targets and the students within them; latency is simulated except in one test."""

from __future__ import annotations

import random
from contextlib import nullcontext
from dataclasses import replace

import pytest
from helpers.captured import timm_program

from fitcompress.api import plan
from fitcompress.errors import PlanError, RecipeError
from fitcompress.events import ignore
from fitcompress.graph.analysis.costs import measure_costs
from fitcompress.interface import InputSpec, Interface
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.recipe.schema import StudentRecipe
from fitcompress.recipe.targets import Target, parse_target
from fitcompress.student import latency_search
from fitcompress.student.init import random_program
from fitcompress.student.latency_search import Latency
from fitcompress.student.plan import plan_student
from fitcompress.student.sizing import plan_from_recipe
from fitcompress.student.width_search import MIN_WIDTH_MULT

INTERFACE = Interface(input=InputSpec(shape=(3, 224, 224), mean=(0.5,) * 3, std=(0.25,) * 3))


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("params", "10%", Target(0.1, is_share=True)),
        ("params", "2M", Target(2e6)),
        ("params", "300k", Target(3e5)),
        ("flops", "1.5G", Target(1.5e9)),
        ("macs", "12345", Target(12345)),
        ("size", "2MB", Target(2e6)),
        ("size", "2 MiB", Target(2 * 2**20)),
        ("latency", "5 ms", Target(0.005)),
        ("latency", "250us", Target(250e-6)),
    ],
)
def test_targets_are_read(kind, text, expected):
    found = parse_target(kind, text)
    assert found.amount == pytest.approx(expected.amount) and found.is_share == expected.is_share


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("params", "2MB"),
        ("latency", "5"),
        ("size", "x"),
        ("flops", "-3M"),
        ("flops", "0"),
        ("params", "0%"),
    ],
)
def test_a_malformed_target_is_an_error(kind, text):
    with pytest.raises(RecipeError) as caught:
        StudentRecipe(**{f"target_{kind}": text})
    assert caught.value.code == "target-unreadable"


def test_a_width_and_a_target_exclude_each_other():
    with pytest.raises(RecipeError) as caught:
        StudentRecipe(target_params="10%", width_mult=0.3)
    assert caught.value.code == "width-and-target"


def test_operations_may_be_named_either_way():
    teacher = timm_program("resnet18")
    plans = [
        plan_from_recipe(teacher, INTERFACE, StudentRecipe(**{f"target_{kind}": text}), emit=ignore)
        for kind, text in (("flops", "400M"), ("macs", "200M"))
    ]
    assert plans[0].costs == plans[1].costs
    assert 0.97 * 400e6 <= plans[0].costs.flops <= 400e6


def test_a_notice_has_the_share_of_the_target_that_is_used():
    events = []
    settings = {"teacher.source": "resnet18", "teacher.pretrained": False}
    found = plan(
        resolve_recipe(settings={**settings, "student.target_params": "10%"}), emit=events.append
    )
    assert 0.097 <= found["student"]["params"] / found["teacher"]["params"] <= 0.1
    (notice,) = [event for event in events if event.code == "targets-used"]
    assert "uses 9" in notice.message
    assert found["depth_mult"] == 2.0 and 0 < found["width_mult"] < 1


def test_sizes_next_to_a_target_that_cannot_be_filled_are_named():
    said = []
    settings = {"teacher.source": "test_resnet", "teacher.pretrained": False}
    recipe = resolve_recipe(settings={**settings, "student.target_params": "12k"})
    params = plan(recipe, emit=said.append)["student"]["params"]
    assert params <= 12_000
    if params < 0.97 * 12_000:
        assert any(f"{params:,} parameters and " in event.message for event in said)


def _set_clock(monkeypatch, seconds=lambda macs: macs * 1e-9):
    """Simulates a latency of `seconds(macs)`, by default a nanosecond per multiply-add."""

    def measured(programs):
        return [Latency(seconds(measure_costs(program).macs), 1.0) for program in programs]

    monkeypatch.setattr(
        latency_search, "runners_of", lambda program, interface: nullcontext(program)
    )
    monkeypatch.setattr(latency_search, "measure_latency", measured)


def test_a_share_is_of_the_latency_of_a_copy_of_the_teacher_measured_with_it(monkeypatch):
    _set_clock(monkeypatch)
    teacher = timm_program("resnet18")
    recipe = StudentRecipe(target_latency="40%", depth_mult=2.0)
    found = plan_from_recipe(teacher, INTERFACE, recipe, emit=ignore)
    assert 0.36 <= found.costs.macs / measure_costs(teacher).macs <= 0.4


def test_a_latency_is_searched_by_measuring(monkeypatch):
    _set_clock(monkeypatch)
    teacher, said = timm_program("resnet18"), []
    recipe = StudentRecipe(target_latency="200ms", depth_mult=2.0)
    found = plan_from_recipe(teacher, INTERFACE, recipe, emit=said.append)
    assert 180e6 <= found.costs.macs <= 200e6
    assert "onnxruntime" in said[0].message and len(said) <= 4
    again = plan_from_recipe(
        teacher,
        INTERFACE,
        recipe,
        emit=lambda event: pytest.fail("measured again"),
        before=(found.depth_mult, found.limits.macs),
    )
    assert again.costs == found.costs


@pytest.mark.parametrize("seed", range(5))
def test_a_latency_is_found_where_calls_cost_something_and_measurements_differ(monkeypatch, seed):
    noise = random.Random(seed)

    def truth(macs):
        return 1e-3 + 1e-9 * macs**0.95

    _set_clock(monkeypatch, lambda macs: truth(macs) * noise.uniform(0.97, 1.03))
    said = []
    recipe = StudentRecipe(target_latency="50ms", depth_mult=2.0)
    found = plan_from_recipe(timm_program("resnet18"), INTERFACE, recipe, emit=said.append)
    assert 0.87 <= truth(found.costs.macs) / 50e-3 <= 1.03
    assert len(said) <= 6


def test_the_smallest_student_is_within_the_other_targets_too_and_not_measured_again(monkeypatch):
    _set_clock(monkeypatch)
    teacher = timm_program("resnet18")
    smallest = plan_student(teacher, depth_mult=2.0, width_mult=MIN_WIDTH_MULT).costs
    recipe = StudentRecipe(
        target_latency=f"{smallest.macs * 1.001e-6}ms",
        target_params=f"{round(smallest.params * 0.99)}",
        depth_mult=2.0,
    )
    with pytest.raises(PlanError) as caught:
        plan_from_recipe(teacher, INTERFACE, recipe, emit=ignore)
    assert caught.value.code == "target-too-small"
    assert caught.value.facts["params"] > recipe.targets["params"].amount
    found = plan_from_recipe(teacher, INTERFACE, replace(recipe, target_params="20%"), emit=ignore)
    assert found.costs.macs <= smallest.macs
    assert found.limits.macs == smallest.macs  # a resumed run plans with it


def test_a_latency_that_no_student_has_is_refused(monkeypatch):
    _set_clock(monkeypatch)
    recipe = StudentRecipe(target_latency="1us")
    with pytest.raises(PlanError) as caught:
        plan_from_recipe(timm_program("resnet18"), INTERFACE, recipe, emit=ignore)
    assert caught.value.code == "latency-target-too-small"
    assert caught.value.facts["share"] > 1


@pytest.mark.integration
def test_a_measured_latency_is_one():
    program = random_program(
        plan_student(timm_program("resnet18", 64), depth_mult=1, width_mult=0.1)
    )
    spec = InputSpec(shape=(3, 64, 64), mean=(0.5,) * 3, std=(0.25,) * 3)
    with latency_search.runners_of(program, Interface(input=spec)) as own:
        (found,) = latency_search.measure_latency([own])
    assert 1e-5 < found.onnxruntime < 1 and 1e-5 < found.torch < 1
