"""Whole runs, small ones: what is in the directory, what is reported, and that it comes out again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_nets import export_to, quietly, reloaded, traced
from torch import nn
from toy_runs import (
    NAMES,
    SIDE,
    SPEC,
    make_small,
    toy_recipe,
    toy_teacher,
    trained_net,
    write_images,
)

import fitcompress
from fitcompress.data import make_dataset
from fitcompress.data.preprocess import Preprocess
from fitcompress.errors import RunError, TeacherError
from fitcompress.events import EpochFinished, Notice, StageStarted
from fitcompress.measure import load_predictions
from fitcompress.model import load_model
from fitcompress.onnxfile import open_onnx
from fitcompress.pipeline import distill, evaluate, export, inspect, load_report, train_teacher
from fitcompress.recipe import load_recipe, resolve_recipe

MODEL_KEYS = {"params", "macs", "flops", "depth", "size_bytes", "accuracy", "latency_ms"}


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


@pytest.fixture(scope="session")
def finished(images, tmp_path_factory) -> Path:
    """A finished run with a baseline."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    torch.manual_seed(0)
    distill(toy_recipe(images, out, run__baseline=True), teacher=toy_teacher())
    return out


def weights(run: Path, name: str = "student") -> dict[str, torch.Tensor]:
    return load_model(run / name).program.tensors


def same_weights(one: Path, other: Path, name: str = "student") -> bool:
    first, second = weights(one, name), weights(other, name)
    return first.keys() == second.keys() and all(map(torch.equal, first.values(), second.values()))


def some_images(num: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num, 3, SIDE, SIDE, generator=generator)


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
    assert [stage["stage"] for stage in report["stages"]] == ["stage1", "stage2", "baseline"]
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

    for name in ("teacher", "student", "baseline"):
        right = (stored[name].logits_NK.argmax(1) == stored[name].labels_N).float().mean()
        assert results[name]["accuracy"]["top1"] == pytest.approx(float(right))
    assert measured["accuracy"] == results["student"]["accuracy"]
    assert measured["n"] == 30


@pytest.mark.parametrize("form", ["text", "md", "html", "json"])
def test_every_form_of_the_report_names_the_models(finished, form):
    text = load_report(finished).render(form)

    assert "student" in text.lower()
    assert "baseline" in text.lower() or "without a teacher" in text


def test_events_tell_the_stages_in_order_and_the_notices(images, tmp_path):
    events = []
    distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(), emit=events.append)

    stages = [event.stage for event in events if isinstance(event, StageStarted)]
    notices = [event for event in events if isinstance(event, Notice)]
    assert stages[:2] == ["stage1", "stage2"]
    assert [e.stage for e in events if isinstance(e, EpochFinished)].count("stage2") == 2
    assert "48 training" in notices[0].message or "training images" in notices[0].message
    assert any("minutes" in notice.message and "MB" in notice.message for notice in notices)


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
    assert "finished already" in events[-1].message
    assert (finished / "student/model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_not_overwritten_unless_forced(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", stage1__epochs=0, stage2__epochs=1)
    distill(recipe, teacher=toy_teacher())

    with pytest.raises(RunError, match="already holds a run"):
        distill(recipe, teacher=toy_teacher())
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


def test_the_baseline_starts_from_the_students_first_weights(images, tmp_path):
    recipe = toy_recipe(
        images, tmp_path / "run", run__baseline=True, stage1__epochs=0, stage2__epochs=0
    )
    distill(recipe, teacher=toy_teacher())

    first, second = weights(tmp_path / "run"), weights(tmp_path / "run", "baseline")
    assert all(map(torch.equal, first.values(), second.values()))


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
        "heavy = {'timm', 'toy_runs', 'accelerate', 'onnx', 'fitcompress.teacher'}\n"
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
        fitcompress.data.load_data(recipe.data, seed=0, emit=print).train,
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


# --- kinds of teachers and students ------------------------------------------------------------


def test_a_timm_teacher_of_other_classes_is_adapted_first(images, tmp_path):
    events = []
    recipe = toy_recipe(
        images,
        tmp_path / "run",
        teacher__source="test_resnet",
        teacher__pretrained=False,
        teacher__epochs=6,
        stage1__epochs=1,
        stage2__epochs=1,
    )
    report = distill(recipe, emit=events.append).to_dict()

    assert [stage["stage"] for stage in report["stages"]] == ["teacher", "stage1", "stage2"]
    assert report["headline_facts"]["adapted"]
    assert report["headline_facts"]["teacher_weights"] == "random"
    assert any("random" in sentence for sentence in report["headline"])
    assert load_model(tmp_path / "run/teacher").interface.class_names == tuple(sorted(NAMES))
    assert any("a copy is adapted first" in getattr(e, "message", "") for e in events)


class Softmaxed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(trained_net(), nn.Softmax(1))


def test_a_softmax_at_the_end_of_an_archive_is_trained_around_and_exported(images, tmp_path):
    archive = tmp_path / "teacher.pt"
    reloaded(traced(Softmaxed().eval(), some_images(2)), archive)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    recipe = toy_recipe(
        images,
        tmp_path / "run",
        teacher__source=str(archive),
        teacher__input_size=(3, SIDE, SIDE),
        teacher__mean=SPEC.mean,
        teacher__std=SPEC.std,
        teacher__class_map=str(tmp_path / "names.txt"),
    )
    report = distill(recipe).to_dict()
    (record,) = export(tmp_path / "run", ["onnx"])

    student = fitcompress.load(tmp_path / "run")
    assert student.interface.activation == "softmax"
    assert report["teacher"]["accuracy"]["top1"] > 0.9
    logits = load_predictions(tmp_path / "run/predictions.safetensors")["teacher"].logits_NK
    assert (logits.sum(1) - 1).abs().max() > 0.1, "the losses act on what enters the softmax"
    shares = open_onnx(Path(record["path"]))(some_images(4))
    assert torch.allclose(shares.sum(1), torch.ones(4), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(shares, student(some_images(4)).softmax(1), atol=1e-5)
    assert load_report(tmp_path / "run").to_dict()["exports"] == [record]


def test_images_without_labels_are_enough(tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    folders = write_images(tmp_path / "images")
    for number, path in enumerate(sorted(folders.rglob("*.png"))):
        Image.open(path).save(flat / f"{number:03}.png")
    recipe = toy_recipe(flat, tmp_path / "run", run__baseline=True)

    report = distill(recipe, teacher=toy_teacher()).to_dict()

    assert report["student"]["accuracy"] is None
    assert report["agreement"]["n"] > 0
    assert "baseline" not in report, "there is nothing to train it on"
    assert load_report(tmp_path / "run").render("text")


@pytest.mark.parametrize("is_told", [True, False], ids=["class map", "names of the teacher"])
def test_labels_follow_the_teachers_order_of_classes(images, tmp_path, is_told):
    """The folders are sorted left, middle, right; this teacher says right, left, middle."""
    order = [2, 0, 1]
    net = nn.Sequential(trained_net(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(3)[order])
    path = tmp_path / "teacher.pt2"
    export_to(path, net.eval(), some_images(2))
    (tmp_path / "names.txt").write_text("\n".join(NAMES[index] for index in order))
    more = {"teacher__class_map": str(tmp_path / "names.txt")} if is_told else {}
    recipe = toy_recipe(
        images,
        tmp_path / "run",
        teacher__source=str(path),
        teacher__mean=SPEC.mean,
        teacher__std=SPEC.std,
        stage1__epochs=0,
        stage2__epochs=1,
        **more,
    )
    with quietly():
        teacher = None
        if not is_told:
            teacher = fitcompress.teacher_from_module(
                net, SPEC, class_names=[NAMES[index] for index in order]
            )
        report = distill(recipe, teacher=teacher).to_dict()

    assert report["teacher"]["accuracy"]["top1"] == 1.0
    assert fitcompress.load(tmp_path / "run").interface.class_names == ("right", "left", "middle")


def test_a_teacher_near_chance_stops_before_any_training(images, tmp_path):
    torch.manual_seed(0)
    silent = nn.Sequential(trained_net(), nn.Linear(3, 3))
    with torch.no_grad():
        silent[1].weight.zero_()

    with pytest.raises(TeacherError, match="near chance for 3 classes") as caught:
        distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(silent.eval()))

    assert "--class-map" in caught.value.advice
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert not load_report(tmp_path / "run").is_finished


def test_a_student_of_ones_own(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", student__source="toy_runs:make_small")

    report = distill(recipe, teacher=toy_teacher()).to_dict()

    expected = sum(parameter.numel() for parameter in make_small().parameters())
    assert report["student"]["params"] == expected
    assert report["pairs"][0]["guided_shape"][0] == report["pairs"][0]["hint_shape"][0] // 2
    assert fitcompress.load(tmp_path / "run").interface.class_names == NAMES


@pytest.mark.parametrize("preset", ["fitnets", "hinton"])
def test_presets_run(images, tmp_path, preset):
    epochs = {"fitnets": {"stage1__epochs": 1}, "hinton": {}}[preset]
    settings = {"data__batch_size": 8, "stage2__epochs": 2, **epochs}
    recipe = resolve_recipe(
        preset=preset,
        settings={
            "data.source": str(images),
            "run.out": str(tmp_path / "run"),
            "run.device": "cpu",
            "student.width_mult": 0.5,
            **{name.replace("__", "."): value for name, value in settings.items()},
        },
    )
    report = distill(recipe, teacher=toy_teacher()).to_dict()

    stages = [stage["stage"] for stage in report["stages"]]
    assert stages == {"fitnets": ["stage1", "stage2"], "hinton": ["stage2"]}[preset]
    assert all(stage["losses"]["loss"] == stage["losses"]["loss"] for stage in report["stages"])


def test_several_hint_pairs_are_trained_together(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", hints__num_pairs=2)

    report = distill(recipe, teacher=toy_teacher()).to_dict()

    losses = report["stages"][0]["losses"]
    assert len(report["pairs"]) == 2
    assert losses["loss"] == pytest.approx(losses["hint_1"] + losses["hint_2"])


# --- the other commands ------------------------------------------------------------------------


def test_every_format_is_written_and_known_to_the_report(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", stage1__epochs=0, stage2__epochs=1)
    distill(recipe, teacher=toy_teacher())
    formats = ["torchscript", "pt2", "safetensors"]

    export(tmp_path / "run", formats[:1])
    records = export(tmp_path / "run", formats[1:])

    assert [record["format"] for record in records] == formats[1:]
    assert all(Path(record["path"]).exists() for record in records)
    known = load_report(tmp_path / "run").to_dict()["exports"]
    assert [record["format"] for record in known] == formats


def test_an_unfinished_run_is_not_exported_but_reported(images, tmp_path):
    with pytest.raises(TeacherError):
        distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(zeroed()))

    with pytest.raises(RunError, match="not trained yet") as caught:
        export(tmp_path / "run")
    report = load_report(tmp_path / "run").to_dict()

    assert "--resume" in caught.value.advice
    assert not report["is_finished"]
    assert report["student"]["params"] > 0, "the plan is known"
    assert "stage 2 (distillation)" in report["missing"]


def zeroed() -> nn.Module:
    """The teacher with a head that says nothing."""
    net = nn.Sequential(trained_net(), nn.Linear(3, 3))
    nn.init.zeros_(net[1].weight)
    return net.eval()


def test_a_teacher_can_be_made_and_used(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "made", teacher__epochs=6)
    folder = train_teacher("test_resnet", recipe)

    report = distill(
        toy_recipe(images, tmp_path / "run", teacher__source=str(folder), stage2__epochs=1)
    ).to_dict()

    assert not report["headline_facts"]["adapted"]
    assert report["teacher"]["accuracy"]["top1"] > 0.6


def test_inspect_keeps_its_contract():
    settings = {"teacher.source": "test_resnet", "teacher.pretrained": False}
    layers = inspect(resolve_recipe(settings=settings))

    for layer in layers:
        assert list(layer) == ["name", "kind", "shape", "depth_share", "candidate"]
    assert json.loads(json.dumps(layers)) == layers
    assert any(layer["candidate"] for layer in layers)
