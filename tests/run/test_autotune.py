"""The teacher's precision and layout, and compiling, are chosen by measurement."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from helpers import toy_runs
from torch import nn

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.errors import RecipeError
from fitcompress.events import Emit, Event, Notice, ignore
from fitcompress.models.model import Model, make_model
from fitcompress.recipe.recipe import Recipe, load_recipe
from fitcompress.records.measurements import Timing
from fitcompress.run import autotune
from fitcompress.run.distill import distill
from fitcompress.run.resolve import keep_measured, resolve_compile, resolve_teacher_form
from fitcompress.run.session import host_device


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return toy_runs.write_images(tmp_path / "images")


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Recipe:
    return toy_runs.toy_recipe(images, tmp_path / "run", run__teacher_layout="auto")


@pytest.fixture
def data(recipe: Recipe) -> DataBundle:
    return load_data(recipe.data, seed=0, emit=ignore)


@pytest.fixture
def student() -> Model:
    teacher = toy_runs.toy_teacher()
    return make_model(teacher.program, teacher.interface)


def compile_choice(recipe: Recipe, data: DataBundle, student: Model) -> tuple[str, Notice]:
    """The choice whether to compile a long training, and the notice of it."""
    events: list[Event] = []
    chosen = resolve_compile(recipe, data, student, 700.0, events.append).run.compile
    (notice,) = events
    return chosen, notice


def speedup_in(notice: Notice) -> float:
    """The speedup of compiled steps that a notice reports."""
    (number,) = re.findall(r"steps are ([\d.]+)x as fast", notice.message)
    return float(number)


def took(speedup: float) -> Timing:
    return Timing(median_ms=1.0, p95_ms=1.0, n=1, images_per_s=None, warmup=0, speedup=speedup)


def measured(monkeypatch: pytest.MonkeyPatch, **speedups: float) -> None:
    """Speeds that are as given, of forms by layout and precision."""

    def paired_latency(runners, batch_sizes, **_):
        (size,) = map(str, batch_sizes)
        return {
            name: {size: took(speedups.get(name.replace("-", "_").replace(" ", "_"), 1.0))}
            for name in runners
        }

    monkeypatch.setattr(autotune, "paired_latency", paired_latency)


def teacher_form(recipe: Recipe, data: DataBundle, emit: Emit = ignore) -> tuple[str, str]:
    run = resolve_teacher_form(recipe, data, toy_runs.toy_teacher(), emit).run
    return run.teacher_precision, run.teacher_layout


@pytest.mark.parametrize("speedup, layout", [(1.3, "channels-last"), (1.05, "contiguous")])
def test_a_layout_must_be_faster_by_more_than_noise(monkeypatch, recipe, data, speedup, layout):
    measured(monkeypatch, channels_last_fp32=speedup)
    events: list[Event] = []
    assert teacher_form(recipe, data, events.append) == ("fp32", layout)
    (notice,) = events
    assert notice.code == "teacher-form-chosen"
    assert f"channels-last fp32 is {speedup:.2f}x as fast" in notice.message


@pytest.mark.parametrize("tolerance, precision", [(0.1, "bf16"), (1e-6, "fp32")])
def test_a_lower_precision_must_keep_the_outputs(monkeypatch, recipe, data, tolerance, precision):
    monkeypatch.setattr(autotune, "has_bf16", lambda _: True)
    monkeypatch.setattr(autotune, "_TOLERANCE", tolerance)
    measured(monkeypatch, contiguous_bf16=3.0)
    assert teacher_form(recipe, data) == (precision, "contiguous")


def test_a_requested_form_is_not_measured(monkeypatch, recipe, data):
    monkeypatch.setattr(autotune, "paired_latency", None)
    run = replace(recipe.run, teacher_precision="bf16", teacher_layout="channels-last")
    assert teacher_form(replace(recipe, run=run), data) == ("bf16", "channels-last")


def test_a_lower_precision_stays_inside_of_the_teacher():
    teacher = toy_runs.toy_teacher()
    model = make_model(teacher.program, teacher.interface)
    x = torch.randn(4, *toy_runs.SPEC.shape)
    exact = freeze_teacher(model).network
    lower = freeze_teacher(model, precision="bf16", layout="channels-last").network
    (expected,), (found,) = exact(x), lower(x)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(exact(x)[0], expected)
        assert torch.equal(lower(x)[0], found)
    weights = {part.weight.dtype for part in lower.modules() if isinstance(part, nn.Conv2d)}
    assert weights == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in teacher.program.tensors.values())


def test_channels_last_computes_the_same():
    teacher = toy_runs.toy_teacher()
    model = make_model(teacher.program, teacher.interface)
    x = torch.randn(4, *toy_runs.SPEC.shape)
    seen: list[torch.Tensor] = []
    network = freeze_teacher(model, layout="channels-last").network
    first = next(part for part in network.modules() if isinstance(part, nn.Conv2d))
    first.register_forward_hook(lambda *given: seen.append(given[-1]))
    torch.testing.assert_close(network(x), freeze_teacher(model).network(x))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_a_resumed_run_keeps_the_measured_choices(monkeypatch, tmp_path, images):
    recipe = toy_runs.toy_recipe(images, tmp_path / "run", run__teacher_layout="auto")
    measured(monkeypatch, channels_last_fp32=2.0)
    distill(recipe, teacher=toy_runs.toy_teacher())
    stored = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (stored.run.teacher_precision, stored.run.teacher_layout) == ("fp32", "channels-last")
    assert keep_measured(recipe, stored).run == stored.run
    asked = replace(recipe, run=replace(recipe.run, teacher_layout="contiguous"))
    assert keep_measured(asked, stored).run.teacher_layout == "contiguous"


@pytest.mark.integration
@pytest.mark.parametrize(
    "requested, seconds, expected",
    [
        ("auto", 700, "on"),
        ("auto", 500, "off"),
        ("auto", None, "auto"),
        ("on", 1, "on"),
        ("off", 9000, "off"),
    ],
)
def test_long_training_is_compiled(
    monkeypatch, recipe, data, student, requested, seconds, expected
):
    measured(monkeypatch, compiled=2.0)
    recipe = replace(recipe, run=replace(recipe.run, compile=requested))
    resolved = resolve_compile(recipe, data, student, seconds, ignore)
    assert resolved == replace(recipe, run=replace(recipe.run, compile=expected))


@pytest.mark.parametrize("speedup, expected", [(1.3, "on"), (0.5, "off")])
def test_a_slower_compiled_student_is_not_compiled(
    monkeypatch, recipe, data, student, speedup, expected
):
    measured(monkeypatch, compiled=speedup)
    chosen, notice = compile_choice(recipe, data, student)
    assert (chosen, notice.code) == (expected, "compile-chosen")
    assert speedup_in(notice) == speedup


def test_compiling_is_measured_on_steps_of_copies(monkeypatch, recipe, data, student):
    steps: list[bool] = []

    def backend(graph, _):
        def run(*inputs):
            steps.append(torch.is_grad_enabled())
            time.sleep(0.05)
            return graph(*inputs)

        return run

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.reset()
    before = {name: value.clone() for name, value in student.network.state_dict().items()}
    chosen, notice = compile_choice(recipe, data, student)
    assert steps and all(steps)
    assert chosen == "off" and 0 < speedup_in(notice) < 1
    after = student.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in student.network.parameters())


def test_a_compiler_that_fails_is_not_used(monkeypatch, recipe, data, student):
    def backend(*_):
        raise RuntimeError("no such processor")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.reset()
    chosen, notice = compile_choice(recipe, data, student)
    assert (chosen, notice.code) == ("off", "compile-failed")
    assert "no such processor" in notice.message


def test_sharded_networks_stay_whole_only_on_the_host(monkeypatch, recipe, data, student):
    run = replace(recipe.run, device="cuda", shard=True)
    sharded = replace(recipe, run=run)
    monkeypatch.setattr("fitcompress.run.session.resolve_device", lambda name: name)
    assert host_device(sharded) == "cpu"
    assert host_device(replace(recipe, run=replace(run, shard=False))) == "cuda"
    assert teacher_form(sharded, data) == ("fp32", "contiguous")
    assert resolve_compile(sharded, data, student, None, ignore) == sharded
    with pytest.raises(RecipeError) as caught:
        replace(run, cache_teacher="answers")
    assert caught.value.facts["setting"] == "run.cache_teacher"
