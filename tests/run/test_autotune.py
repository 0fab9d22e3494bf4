"""How a teacher is run: what is measured decides, within what its outputs may be off."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from helpers import toy_runs
from torch import nn

from fitcompress.data.bundle import load_data
from fitcompress.distillation.frozen_teacher import freeze_teacher
from fitcompress.errors import RecipeError
from fitcompress.events import Event, ignore
from fitcompress.models.model import Model, make_model
from fitcompress.recipe.recipe import load_recipe
from fitcompress.run import autotune as tuning
from fitcompress.run.distill import distill
from fitcompress.run.session import Session
from fitcompress.rundir import RunDir


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return toy_runs.write_images(tmp_path / "images")


@pytest.fixture
def session(tmp_path: Path, images: Path) -> Session:
    recipe = toy_runs.toy_recipe(images, tmp_path / "run", run__teacher_layout="auto")
    data = load_data(recipe.data, seed=0, emit=ignore)
    return Session(recipe, data, ignore, RunDir.create(tmp_path / "run", force=False))


@pytest.fixture
def student() -> Model:
    teacher = toy_runs.toy_teacher()
    return make_model(teacher.program, teacher.interface)


def decided(session: Session, student: Model) -> tuple[str, str]:
    """The decision on compiling a long training, and the end of what is said of it."""
    said: list[Event] = []
    session = replace(session, emit=said.append)
    decision = tuning.compiling(session, student, 700.0).recipe.run.compile
    (notice,) = said
    return decision, notice.message.split("compiled, ")[-1]


def measured(monkeypatch: pytest.MonkeyPatch, **speedups: float) -> None:
    """Speeds that are as given, of forms by layout and precision."""

    def paired_latency(runners, batch_sizes, **_):
        (size,) = map(str, batch_sizes)
        return {
            name: {size: {"speedup": speedups.get(name.replace("-", "_").replace(" ", "_"), 1.0)}}
            for name in runners
        }

    monkeypatch.setattr(tuning, "paired_latency", paired_latency)


@pytest.mark.parametrize("speedup, layout", [(1.3, "channels-last"), (1.05, "contiguous")])
def test_a_layout_must_be_faster_by_more_than_noise(monkeypatch, session, speedup, layout):
    measured(monkeypatch, channels_last_fp32=speedup)
    said: list[Event] = []
    session = replace(session, emit=said.append)
    assert tuning.tuned(session, toy_runs.toy_teacher()).recipe.run.teacher_layout == layout
    (notice,) = said
    assert f"channels-last fp32 is {speedup:.2f}x as fast" in notice.message


@pytest.mark.parametrize("tolerance, precision", [(0.1, "bf16"), (1e-6, "fp32")])
def test_a_precision_must_say_the_same(monkeypatch, session, tolerance, precision):
    monkeypatch.setattr(tuning, "has_bf16", lambda _: True)
    monkeypatch.setattr(tuning, "_TOLERANCE", tolerance)
    measured(monkeypatch, contiguous_bf16=3.0)
    run = tuning.tuned(session, toy_runs.toy_teacher()).recipe.run
    assert (run.teacher_precision, run.teacher_layout) == (precision, "contiguous")


def test_what_is_asked_for_is_not_measured(monkeypatch, session):
    monkeypatch.setattr(tuning, "paired_latency", None)
    run = replace(session.recipe.run, teacher_precision="bf16", teacher_layout="channels-last")
    asked = replace(session, recipe=replace(session.recipe, run=run))
    assert tuning.tuned(asked, toy_runs.toy_teacher()).recipe.run == run


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


def test_a_run_that_goes_on_keeps_what_was_chosen(monkeypatch, tmp_path, images):
    recipe = toy_runs.toy_recipe(images, tmp_path / "run", run__teacher_layout="auto")
    measured(monkeypatch, channels_last_fp32=2.0)
    distill(recipe, teacher=toy_runs.toy_teacher())
    stored = load_recipe(tmp_path / "run" / "recipe.toml")
    assert (stored.run.teacher_precision, stored.run.teacher_layout) == ("fp32", "channels-last")
    assert tuning.as_chosen(recipe, stored).run == stored.run
    asked = replace(recipe, run=replace(recipe.run, teacher_layout="contiguous"))
    assert tuning.as_chosen(asked, stored).run.teacher_layout == "contiguous"


@pytest.mark.parametrize(
    "asked, seconds, expected",
    [("auto", 700, "on"), ("auto", 500, "off"), ("on", 1, "on"), ("off", 9000, "off")],
)
def test_long_trainings_are_compiled(monkeypatch, session, student, asked, seconds, expected):
    measured(monkeypatch, compiled=2.0)
    run = replace(session.recipe.run, compile=asked)
    session = replace(session, recipe=replace(session.recipe, run=run))
    assert tuning.compiling(session, student, seconds).recipe.run.compile == expected


@pytest.mark.parametrize("speedup, expected", [(1.3, "on"), (0.5, "off")])
def test_what_is_no_faster_for_it_is_not_compiled(monkeypatch, session, student, speedup, expected):
    measured(monkeypatch, compiled=speedup)
    assert decided(session, student) == (expected, f"its steps are {speedup:.2f}x as fast")


def test_compiling_is_measured_on_steps_of_copies(monkeypatch, session, student):
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
    decision, said = decided(session, student)
    assert steps and all(steps)
    assert decision == "off" and 0 < float(said.split()[-3].rstrip("x")) < 1
    after = student.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in student.network.parameters())


def test_a_compiler_that_fails_is_not_asked_again(monkeypatch, session, student):
    def backend(*_):
        raise RuntimeError("no such processor")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    torch.compiler.reset()
    decision, said = decided(session, student)
    assert decision == "off" and "no such processor" in said


def test_networks_that_train_in_shards_are_whole_only_on_the_host(monkeypatch, session, student):
    run = replace(session.recipe.run, device="cuda", shard=True)
    sharded = replace(session, recipe=replace(session.recipe, run=run))
    monkeypatch.setattr("fitcompress.run.session.resolve_device", lambda name: name)
    assert sharded.device == "cpu"
    assert tuning.tuned(sharded, toy_runs.toy_teacher()).recipe.run.teacher_layout == "contiguous"
    assert tuning.compiling(sharded, student, None) == sharded
    with pytest.raises(RecipeError, match=r"run\.cache_teacher.*run\.shard"):
        replace(run, cache_teacher="answers")
