"""Whole runs, small ones: every kind of teacher, student, data and preset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.predictions import load_predictions
from helpers.small_nets import export_to, quietly, reloaded, traced
from helpers.toy_runs import (
    NAMES,
    SIDE,
    SPEC,
    make_small,
    some_images,
    toy_recipe,
    toy_teacher,
    trained_net,
    write_images,
)
from PIL import Image
from torch import nn

import fitcompress
from fitcompress.api import export, load_report
from fitcompress.errors import TeacherError
from fitcompress.events import ignore
from fitcompress.exporters.onnx_session import open_onnx
from fitcompress.models.model import load_model
from fitcompress.recipe.recipe import resolve_recipe
from fitcompress.run.distill import distill
from fitcompress.run.prepare import load_images
from fitcompress.run.resolve import resolve_training


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "stripes")


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
    assert "teacher-adapted" in [getattr(event, "code", "") for event in events]


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
    assert report["student"]["calibration"] is None
    assert report["classes"] == []
    assert report["doubts"][0]["label"] is None
    for form in ("text", "md", "html"):
        assert load_report(tmp_path / "run").render(form)


@pytest.mark.parametrize("is_told", [True, False], ids=["class map", "names of the teacher"])
def test_labels_follow_the_teachers_order_of_classes(images, tmp_path, is_told):
    """Folders are sorted: left, middle, right. The teacher's order is right, left, middle."""
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

    with pytest.raises(TeacherError) as caught:
        distill(toy_recipe(images, tmp_path / "run"), teacher=toy_teacher(silent.eval()))

    assert caught.value.code == "teacher-near-chance"
    assert caught.value.facts["num_classes"] == 3
    assert not list((tmp_path / "run/checkpoints").iterdir())
    assert not load_report(tmp_path / "run").is_finished


def test_a_custom_student_is_distilled(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", student__source="helpers.toy_runs:make_small")

    report = distill(recipe, teacher=toy_teacher()).to_dict()

    expected = sum(parameter.numel() for parameter in make_small().parameters())
    assert report["student"]["params"] == expected
    assert len(report["pairs"]) == 1
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
    ending = ["teacher outputs, stage2 held out", "stage2"]
    assert stages == {"fitnets": ["stage1", *ending], "hinton": ending}[preset]
    trained = [stage for stage in report["stages"] if stage["epochs"]]
    assert len(trained) == len(stages) - 1
    assert all(stage["losses"]["loss"] == stage["losses"]["loss"] for stage in trained)


def test_several_hint_pairs_are_trained_together(images, tmp_path):
    recipe = toy_recipe(images, tmp_path / "run", hints__num_pairs=2)

    report = distill(recipe, teacher=toy_teacher()).to_dict()

    losses = report["stages"][0]["losses"]
    assert len(report["pairs"]) == 2
    assert losses["loss"] == pytest.approx(losses["hint_1"] + losses["hint_2"])


@pytest.mark.parametrize(
    ("settings", "epochs"),
    [
        ({}, 0),
        ({"hints.num_pairs": 2}, 3),
        ({"hints.guided": ("a.b",)}, 3),
        ({"student.init": "random"}, 3),
        ({"student.init": "random", "stage2.epochs": 0}, 0),
        ({"student.source": "resnet18"}, 3),
        ({"stage1.epochs": 7}, 7),
    ],
)
def test_stage_1_has_a_share_of_the_epochs_unless_weights_are_inherited(images, settings, epochs):
    recipe = resolve_recipe(settings={"data.source": str(images), "stage2.epochs": 20} | settings)

    assert resolve_training(recipe, load_images(recipe, ignore)).stage1.epochs == epochs


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 3e-4),
        ({"student.init": "random"}, 2e-3),
        ({"student.source": "resnet18", "stage2.optim.lr": 0.01}, 0.01),
        ({"stage1.optim.lr": 0.1}, 0.1),
    ],
)
def test_hints_are_learnt_gently_where_weights_are_inherited(images, settings, rate):
    recipe = resolve_recipe(settings={"data.source": str(images)} | settings)

    assert resolve_training(recipe, load_images(recipe, ignore)).stage1.optim.lr == rate


def codes(run: Path) -> list[str]:
    """The codes of the notices that a run recorded, in order."""
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    return [event["code"] for event in events if event["event"] == "Notice"]


def test_a_student_that_inherits_is_not_trained_on_hints_with_a_notice(images, tmp_path):
    report = distill(
        toy_recipe(images, tmp_path / "run", stage1__epochs=None), teacher=toy_teacher()
    ).to_dict()

    assert "stage1" not in [stage["stage"] for stage in report["stages"]]
    assert codes(tmp_path / "run").count("no-hint-training") == 1
    assert report["pairs"] == [], "planned, but not used"


def test_a_named_hint_without_epochs_has_a_notice(images, tmp_path):
    recipe = toy_recipe(
        images, tmp_path / "run", hints__num_pairs=2, stage1__epochs=0, stage2__epochs=0
    )
    distill(recipe, teacher=toy_teacher())

    assert codes(tmp_path / "run").count("hints-without-epochs") == 1
    assert "no-hint-training" not in codes(tmp_path / "run")


def test_hint_training_has_neither_notice(images, tmp_path):
    distill(toy_recipe(images, tmp_path / "run", stage2__epochs=0), teacher=toy_teacher())

    assert not {"no-hint-training", "hints-without-epochs"} & set(codes(tmp_path / "run"))
