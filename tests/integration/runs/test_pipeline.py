"""Small whole runs: their files, their reports, and that they are reproducible."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.predictions import load_predictions
from helpers.toy_runs import (
    NAMES,
    SPEC,
    some_images,
    toy_recipe,
    toy_teacher,
    trained_net,
    write_images,
)
from torch import nn

import fitcompress
from fitcompress.api import evaluate, export, inspect, load_report
from fitcompress.data.bundle import load_data
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import make_dataset
from fitcompress.errors import RunError, TeacherError
from fitcompress.events import EpochFinished, Event, Notice, StageStarted
from fitcompress.models.model import load_model
from fitcompress.recipe.recipe import Recipe, load_recipe, resolve_recipe
from fitcompress.run.distill import distill
from fitcompress.run.train_teacher import train_teacher

STAGES = (
    "stage1",
    "teacher outputs, stage2 train",
    "teacher outputs, stage2 held out",
    "stage2",
)
"""Of a run without augmentation: stage 2 has two epochs of the same views."""
MODEL_KEYS = {"params", "macs", "flops", "depth", "size_bytes", "accuracy", "latency_ms"}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory) -> Path:
    """A finished run with a baseline."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.manual_seed(0)
    recipe = toy_recipe(images, out, run__baseline=True, run__timing="torch")
    distill(recipe, teacher=toy_teacher())
    return out


def weights(run: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return load_model(run / name).program.tensors


def same_weights(one: Path, other: Path, name: str = "student") -> bool:
    first, second = weights(one, name), weights(other, name)
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


# --- the run directory -------------------------------------------------------------------------


def test_a_run_leaves_every_file_that_it_promises(finished):
    files = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}

    assert files >= {
        "recipe.toml",
        "environment.json",
        "plan.json",
        "events.jsonl",
        "results.json",
        "predictions.safetensors",
        "student/model.safetensors",
        "student/config.json",
        "baseline/model.safetensors",
        "baseline/config.json",
        *(f"checkpoints/{stage}.pt" for stage in ("stage1", "stage2", "baseline")),
    }
    assert not [name for name in files if name.endswith((".tmp", ".partial"))]


def test_the_stored_recipe_is_resolved(finished):
    recipe = load_recipe(finished / "recipe.toml")

    assert None not in (recipe.stage1.epochs, recipe.stage2.epochs, recipe.teacher.epochs)


def test_the_report_for_scripts_keeps_its_contract(finished):
    report = json.loads(load_report(finished).render("json"))

    for name in ("teacher", "student", "baseline"):
        model = report[name]
        assert model.keys() >= MODEL_KEYS
        assert model["flops"] == 2 * model["macs"] > 0
        assert model["accuracy"].keys() == {"top1", "low", "high", "n"}
        assert model["accuracy"]["n"] == 30
        assert model["latency_ms"] > 0
    assert report["student"]["params"] < report["teacher"]["params"]
    assert report["student"]["depth"] > 1.8 * report["teacher"]["depth"]
    assert [stage["stage"] for stage in report["stages"]] == [*STAGES, "baseline"]
    assert report["agreement"]["n"] == 30
    assert report["exports"] == []
    assert report["headline_facts"] == {
        "teacher_weights": "archive",
        "adapted": False,
        "evaluation_split": "test",
    }


def test_results_are_those_of_the_stored_predictions_and_of_the_stored_student(finished, images):
    stored = load_predictions(finished / "predictions.safetensors")
    results = json.loads((finished / "results.json").read_text())
    measured = evaluate(str(finished / "student"), toy_recipe(images, finished))
    of_run = evaluate(str(finished), toy_recipe(images, finished))

    for name in ("teacher", "student", "baseline"):
        right = (stored[name].logits_NK.argmax(1) == stored[name].labels_N).float().mean()
        assert results[name]["accuracy"]["top1"] == pytest.approx(float(right))
    assert measured["accuracy"] == of_run["accuracy"] == results["student"]["accuracy"]
    assert measured["n"] == 30


@pytest.mark.parametrize("form", ["text", "md", "html", "json"])
def test_every_form_of_the_report_names_the_models(finished, form):
    text = load_report(finished).render(form)

    for name in ("teacher", "student", "baseline"):
        assert name in text.lower()


def test_events_tell_the_stages_in_order_and_the_notices(images, tmp_path):
    events = []
    distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(), emit=events.append)

    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    notices = [event for event in events if isinstance(event, Notice)]
    assert tuple(stages[:4]) == STAGES
    assert [e.stage for e in events if isinstance(e, EpochFinished)].count("stage2") == 2
    assert notices[0].code == "data-loaded"
    assert ": 43 training images, 5 more held out" in notices[0].message  # of 48
    (estimate,) = [notice for notice in notices if notice.code == "training-estimate"]
    assert re.fullmatch(r"training will take about .+ on cpu and write \d+ MB", estimate.message)


def test_a_finished_run_is_resumed_by_reading_it(finished, images):
    before = (finished / "student/model.safetensors").stat().st_mtime_ns
    events = []

    report = distill(
        toy_recipe(images, finished, run__baseline=True),
        teacher=toy_teacher(),
        resume=True,
        emit=events.append,
    )

    assert report.is_finished
    assert [event.code for event in events] == ["run-finished"]
    assert (finished / "student/model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten_unless_forced(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", stage1__epochs=0, stage2__epochs=1)
    distill(recipe, teacher=toy_teacher())

    with pytest.raises(RunError) as caught:
        distill(recipe, teacher=toy_teacher())
    assert caught.value.code == "run-exists"
    assert distill(recipe, teacher=toy_teacher(), force=True).is_finished


# --- the same again ----------------------------------------------------------------------------


def test_the_stored_recipe_gives_the_same_student_again(finished, tmp_path):
    stored = load_recipe(finished / "recipe.toml")
    again = fitcompress.resolve_recipe(
        config=finished / "recipe.toml", settings={"run.out": str(tmp_path / "again")}
    )

    distill(again, teacher=toy_teacher())

    assert stored.student == again.student
    assert same_weights(finished, tmp_path / "again")
    assert same_weights(finished, tmp_path / "again", "baseline")


def test_another_seed_gives_another_student(finished, images, tmp_path):
    distill(toy_recipe(images, tmp_path / "run", run__seed=1), teacher=toy_teacher())

    assert not same_weights(finished, tmp_path / "run")


def test_the_baseline_does_not_change_the_student(finished, images, tmp_path):
    distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher())

    assert same_weights(finished, tmp_path / "run")
    assert not (tmp_path / "run/baseline").exists()


@pytest.mark.parametrize(("init", "is_shared"), [("random", True), ("inherit", False)])
def test_the_baseline_starts_from_random_weights_a_random_students_own(
    images, tmp_path, init, is_shared
):
    recipe = toy_recipe(
        images,
        tmp_path / "run",
        run__baseline=True,
        student__init=init,
        stage1__epochs=0,
        stage2__epochs=0,
    )
    distill(recipe, teacher=toy_teacher())

    first, second = weights(tmp_path / "run"), weights(tmp_path / "run", "baseline")
    assert all(map(torch.equal, first.values(), second.values())) is is_shared


def test_load_in_a_fresh_process_needs_no_teacher_and_gives_the_same_bits(finished):
    x_NCHW = some_images()
    torch.save(x_NCHW, finished.parent / "x.pt")
    code = (
        "import sys, torch, fitcompress\n"
        "torch.set_num_threads(1)\n"
        f"net = fitcompress.load({str(finished)!r})\n"
        f"x = torch.load({str(finished.parent / 'x.pt')!r})\n"
        "with torch.no_grad(): y = net(x)\n"
        f"torch.save((y, net.interface.class_names), {str(finished.parent / 'y.pt')!r})\n"
        "heavy = {'timm', 'helpers.toy_runs', 'accelerate', 'onnx', 'fitcompress.models.open'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    home = str(Path(fitcompress.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": home},
        cwd=finished.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    outputs, class_names = torch.load(finished.parent / "y.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        expected = fitcompress.load(finished / "student")(x_NCHW)
    torch.set_num_threads(threads)
    assert torch.equal(outputs, expected)
    assert class_names == NAMES


def test_width_1_and_depth_1_inherited_is_the_teacher_itself(images, tmp_path):
    recipe = toy_recipe(
        images,
        tmp_path / "run",
        student__width_mult=1.0,
        student__depth_mult=1.0,
        student__init="inherit",
        stage1__epochs=0,
        stage2__epochs=0,
    )
    report = distill(recipe, teacher=toy_teacher())

    with torch.no_grad():
        outputs = fitcompress.load(tmp_path / "run")(some_images())
        expected = trained_net()(some_images())
    assert torch.equal(outputs, expected)
    assert report.to_dict()["agreement"]["top1"] == 1.0


def test_an_inherited_thinner_student_has_statistics_of_its_own(images, tmp_path):
    recipe = toy_recipe(
        images, tmp_path / "run", student__init="inherit", stage1__epochs=0, stage2__epochs=0
    )
    distill(recipe, teacher=toy_teacher())

    tensors = weights(tmp_path / "run")
    means = [value for name, value in tensors.items() if name.endswith("running_mean")]
    network = fitcompress.load(tmp_path / "run")
    views = make_dataset(
        load_data(recipe.data, seed=0, emit=print).train,
        SPEC,
        augment="none",
        seed=0,
    )
    seen = []
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    handle = norm.register_forward_hook(lambda m, args, output: seen.append(args[0]))
    with torch.no_grad():
        network(Preprocess(SPEC)(views.batch(list(range(len(views)))).images))
    handle.remove()
    assert any(mean.abs().sum() > 0 for mean in means)
    mean_C = seen[0].mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, mean_C, atol=0.1 * float(seen[0].std()))


# --- the other commands ------------------------------------------------------------------------


def test_every_format_is_written_and_known_to_the_report(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", stage1__epochs=0, stage2__epochs=1)
    distill(recipe, teacher=toy_teacher())
    formats = ["torchscript", "pt2", "safetensors", "python"]

    export(tmp_path / "run", formats[:1])
    records = export(tmp_path / "run", formats[1:])

    assert [record["format"] for record in records] == formats[1:]
    assert all(Path(record["path"]).exists() for record in records)
    assert Path(records[-1]["path"]).name == "student_py" and records[-1]["max_abs_diff"] == 0
    known = load_report(tmp_path / "run").to_dict()["exports"]
    assert [record["format"] for record in known] == formats


def test_an_unfinished_run_is_not_exported_but_reported(images, tmp_path):
    with pytest.raises(TeacherError) as near_chance:
        distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(zeroed()))
    assert near_chance.value.code == "teacher-near-chance"

    with pytest.raises(RunError) as caught:
        export(tmp_path / "run")
    report = load_report(tmp_path / "run").to_dict()

    assert caught.value.code == "run-unfinished"
    assert caught.value.facts == {"path": str(tmp_path / "run")}
    assert not report["is_finished"]
    assert report["student"]["params"] > 0, "the plan is known"
    assert "stage 2 (distillation)" in report["missing"]


def zeroed() -> nn.Module:
    """The teacher with a head of zeros."""
    net = nn.Sequential(trained_net(), nn.Linear(3, 3))
    nn.init.zeros_(net[1].weight)
    return net.eval()


def test_a_trained_teacher_can_be_distilled(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "made", teacher__epochs=6)
    folder = train_teacher("test_resnet", recipe)

    report = distill(
        toy_recipe(images, tmp_path / "run", teacher__source=str(folder), stage2__epochs=1)
    ).to_dict()

    assert not report["headline_facts"]["adapted"]
    assert report["teacher"]["accuracy"]["top1"] > 0.6


def test_train_teacher_resumes_to_the_same_weights(images, tmp_path):
    def stop(event: Event) -> None:
        if isinstance(event, EpochFinished):
            raise KeyboardInterrupt

    def recipe(name: str) -> Recipe:
        return toy_recipe(images, tmp_path / name, teacher__epochs=2)

    whole = train_teacher("test_resnet", recipe("whole"))
    with pytest.raises(KeyboardInterrupt):
        train_teacher("test_resnet", recipe("cut"), emit=stop)
    events: list[Event] = []
    again = train_teacher("test_resnet", recipe("cut"), resume=True, emit=events.append)

    assert [event.epoch for event in events if isinstance(event, EpochFinished)] == [2]
    weights = [(folder / "model.safetensors").read_bytes() for folder in (whole, again)]
    assert weights[0] == weights[1]


def test_inspect_keeps_its_contract():
    settings = {"teacher.source": "test_resnet", "teacher.pretrained": False}
    layers = inspect(resolve_recipe(settings=settings))

    for layer in layers:
        assert list(layer) == ["name", "kind", "shape", "depth_share", "candidate"]
    assert json.loads(json.dumps(layers)) == layers
    assert any(layer["candidate"] for layer in layers)
