"""Ablations: what their runs share, how they are resumed, and that they find only real effects."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import toy_runs
from helpers.predictions import load_predictions
from PIL import Image
from torch import nn

from fitcompress.ablation import cells
from fitcompress.ablation.arms import (
    ARMS,
    read_arms,
)
from fitcompress.ablation.runner import ablate
from fitcompress.api import load_report
from fitcompress.errors import DataError, LayerError, RecipeError, RunError, TeacherError
from fitcompress.events import Event, Notice, StageFinished, StageStarted
from fitcompress.models.teacher import fingerprint_of
from fitcompress.recipe.recipe import Recipe
from fitcompress.records.run_results import StageRecord
from fitcompress.report.ablation_facts import cell_path
from fitcompress.report.ablation_report import Ablation
from fitcompress.report.verdicts import verdict
from fitcompress.student import latency_search as budgets
from fitcompress.student.latency_search import Latency
from fitcompress.training.signals import Interrupted


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return toy_runs.write_images(tmp_path_factory.mktemp("images") / "stripes")


def recipe_of(images: Path, out: Path, **more: object) -> Recipe:
    return toy_runs.toy_recipe(images, out, **more)


def run(
    images: Path,
    out: Path,
    names: list[str],
    seeds: int,
    *own: str,
    against: str | None = None,
    **more,
) -> Ablation:
    own_options = ("teacher", "resume", "emit", "force")
    options = {name: more.pop(name) for name in own_options if name in more}
    return ablate(
        recipe_of(images, out, **more),
        arms=read_arms(names, own, against),
        seeds=range(seeds),
        **({"teacher": toy_runs.toy_teacher()} | options),
    )


def stages_of(found: Ablation, arm: str) -> tuple[StageRecord, ...]:
    return found.cells[arm, 0].results.stages


# --- runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def all_arms(images, tmp_path_factory) -> Ablation:
    out = tmp_path_factory.mktemp("ablations") / "all"
    return run(images, out, list(ARMS), 1, "hot: stage2.tau=8, stage2.label_weight=0.2")


def test_every_arm_trains_and_is_a_run_of_its_own(all_arms):
    assert all_arms.arms == (*ARMS, "hot")
    for arm in all_arms.arms:
        report = load_report(cell_path(all_arms.path, arm, 0))
        assert report.is_finished
        predictions = load_predictions(report.path / "predictions.safetensors")["student"]
        right = float(predictions.correct_N.float().mean())
        assert all_arms.accuracies(arm) == {0: pytest.approx(right)}
    assert not (all_arms.path / "answers").exists()


def test_every_arm_trains_another_student(all_arms):
    weights = {
        (cell_path(all_arms.path, arm, 0) / "student/model.safetensors").read_bytes()
        for arm in all_arms.arms
    }
    assert len(weights) == len(all_arms.arms)


def test_an_arm_costs_only_what_it_runs(all_arms):
    cost = {arm: all_arms.cost(arm).flops for arm in all_arms.arms}
    per_image = {
        arm: {s.stage: s.flops_per_image for s in stages_of(all_arms, arm)} for arm in all_arms.arms
    }
    assert cost["bp"] < cost["kd"] < cost["ht"] < cost["kd-long"]
    assert cost["shuffled"] == cost["rand-net"] == cost["ht"]
    # the teacher does not run: stage 1 costs the student's forward and backward passes
    assert per_image["rand-iid"]["stage1"] == per_image["label"]["stage1"]
    assert per_image["label"]["stage1"] < per_image["ht"]["stage1"]
    assert per_image["ht-nokd"]["stage2"] == per_image["bp"]["stage2"]
    assert per_image["bp"]["stage2"] < per_image["kd"]["stage2"]


def test_the_report_has_every_form(all_arms):
    facts = json.loads(all_arms.render("json"))
    assert [arm["name"] for arm in facts["arms"]] == [*ARMS, "hot"]
    assert facts["missing"] == []
    (hot,) = (arm for arm in facts["arms"] if arm["name"] == "hot")
    assert hot["changes"] == {"stage2.tau": 8.0, "stage2.label_weight": 0.2}
    assert ("hot", "ht") in [(test["arm"], test["against"]) for test in facts["answers"]]
    for form in ("text", "md", "html"):
        page = all_arms.render(form)
        assert all(arm in page for arm in ARMS)
        assert "with one seed: not tested" in page
    assert "<svg" in all_arms.render("html")


def test_load_report_loads_an_ablation(all_arms):
    assert load_report(all_arms.path).render("json") == all_arms.render("json")


def test_more_arms_and_seeds_are_added_and_nothing_is_trained_twice(images, tmp_path):
    out = tmp_path / "out"
    run(images, out, ["kd"], 1)
    written = (cell_path(out, "kd", 0) / "results.json").stat().st_mtime_ns
    events: list[Event] = []
    found = run(images, out, ["bp"], 2, resume=True, emit=events.append)
    assert (cell_path(out, "kd", 0) / "results.json").stat().st_mtime_ns == written
    started = [event.stage for event in events if isinstance(event, StageStarted)]
    assert [name for name in started if "teacher outputs" not in name] == [
        "bp, seed 0, stage2",
        "kd, seed 1, stage2",
        "bp, seed 1, stage2",
    ]
    assert found.arms == ("kd", "bp") and found.seeds == (0, 1)
    assert len(found.cells) == 4
    assert "Arms or seeds were added later" in found.render("text")
    again = ablate(recipe_of(images, out), teacher=toy_runs.toy_teacher(), resume=True)
    assert set(again.cells) == set(found.cells)


def test_a_stopped_run_resumes_to_the_same_weights(images, tmp_path):
    whole = run(images, tmp_path / "whole", ["ht", "kd"], 1)

    def stop(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage.endswith("stage1"):
            raise Interrupted("stage1", tmp_path)

    with pytest.raises(Interrupted):
        run(images, tmp_path / "cut", ["ht", "kd"], 1, emit=stop)
    cut = Ablation.load(tmp_path / "cut")
    assert "Unfinished: 2 of 2 runs are missing" in cut.render("text")
    cut = ablate(recipe_of(images, cut.path), teacher=toy_runs.toy_teacher(), resume=True)
    for arm in ("ht", "kd"):
        weights = [
            (cell_path(each.path, arm, 0) / "student/model.safetensors").read_bytes()
            for each in (whole, cut)
        ]
        assert weights[0] == weights[1]


def test_other_settings_are_not_added(images, tmp_path):
    out = tmp_path / "out"
    run(images, out, ["kd"], 1)
    with pytest.raises(RunError) as existing:
        run(images, out, ["kd"], 1)
    with pytest.raises(RecipeError) as contradiction:
        run(images, out, ["bp"], 1, resume=True, stage2__tau=2.0)
    assert (existing.value.code, existing.value.facts) == ("ablation-exists", {"path": str(out)})
    facts = contradiction.value.facts
    assert contradiction.value.code == "resume-contradiction"
    assert (facts["setting"], facts["expected"], facts["got"]) == ("stage2.tau", 4.0, 2.0)
    ablate(
        recipe_of(images, out, stage2__tau=2.0),
        arms=read_arms(["bp"]),
        seeds=[3],
        teacher=toy_runs.toy_teacher(),
        force=True,
    )
    assert Ablation.load(out).arms == ("bp",)
    assert not (out / "kd").exists() or not list((out / "kd").iterdir())


def test_an_arm_keeps_its_settings(images, tmp_path):
    out = tmp_path / "out"
    found = run(images, out, ["kd"], 1, "hot: stage2.tau=8", against="kd")
    (answer,) = found.answers
    assert (answer.arm, answer.against) == ("hot", "kd")
    difference = found.accuracies("hot")[0] - found.accuracies("kd")[0]
    assert answer.mean == pytest.approx(difference)
    with pytest.raises(RecipeError) as caught:
        run(images, out, ["kd"], 2, "hot: stage2.tau=2", resume=True)
    assert (caught.value.code, caught.value.facts) == ("arm-conflict", {"arm": "hot"})


def test_force_removes_an_ablation_and_nothing_else(images, tmp_path):
    out = tmp_path / "out"
    (out / "teacher").mkdir(parents=True)
    (out / "teacher/mine.txt").write_text("mine")
    with pytest.raises(RunError) as caught:
        run(images, out, ["kd"], 1, force=True)
    assert caught.value.code == "folder-not-empty"
    assert (out / "teacher/mine.txt").read_text() == "mine"


def test_a_student_within_a_latency_is_planned_once(images, tmp_path, monkeypatch):
    measured = []

    def measure(networks):
        measured.append(1)
        return [Latency(1.0, 1.0)] * (len(networks) - 1) + [Latency(0.5, 0.5)]

    monkeypatch.setattr(budgets, "measure_latency", measure)
    found = run(
        images, tmp_path / "out", ["bp", "kd"], 2, student__width_mult=None,
        student__target_latency="50%",
    )  # fmt: skip
    more = run(
        images, tmp_path / "out", ["ht"], 2, resume=True, student__width_mult=None,
        student__target_latency="50%",
    )  # fmt: skip
    assert len(measured) == 1
    sizes = {report.model("student").params for report in more.cells.values()}
    assert len(found.cells) == 4 and len(more.cells) == 6 and len(sizes) == 1


def test_a_changed_teacher_or_images_are_refused(images, tmp_path):
    own = shutil.copytree(images, tmp_path / "images")
    out = tmp_path / "out"
    run(own, out, ["kd"], 1)
    other = toy_runs.toy_teacher()
    weights = {name: value + 0.01 for name, value in other.program.tensors.items()}
    program = replace(other.program, tensors=weights)
    changed = replace(other, program=program, fingerprint=fingerprint_of(program))
    with pytest.raises(RunError) as other_teacher:
        run(own, out, ["bp"], 1, resume=True, teacher=changed)
    for path in (own / "test").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    with pytest.raises(RunError) as other_images:
        run(own, out, ["bp"], 1, resume=True)
    for caught, what in ((other_teacher, "teacher"), (other_images, "images")):
        assert caught.value.code == "ablation-changed"
        assert caught.value.facts == {"changed": what}
    assert set(Ablation.load(out).cells) == {("kd", 0)}


def test_a_run_that_fails_does_not_end_the_others(images, tmp_path):
    hot = "hot: stage1.optim.lr=1e30, stage1.optim.grad_clip=none"
    for resume in (False, True):
        found = run(images, tmp_path / "out", ["bp"], 2, hot, resume=resume)
        assert set(found.cells) == {("bp", 0), ("bp", 1)}
        assert set(found.failed) == {("hot", 0), ("hot", 1)}
    assert "The run of hot with seed 1 failed: " in found.render("text")


def test_an_ablation_that_failed_is_replaced_by_force(images, tmp_path):
    with pytest.raises(LayerError):
        run(images, tmp_path / "out", ["ht"], 1, hints__hint=("nosuch",))
    with pytest.raises(RunError) as caught:
        run(images, tmp_path / "out", ["ht"], 1)
    assert caught.value.code == "ablation-exists"
    assert run(images, tmp_path / "out", ["ht"], 1, force=True).cells
    with pytest.raises(RecipeError):
        run(images, tmp_path / "out", ["ht"], 1, "odd: stage2.tau=-1", force=True)
    assert Ablation.load(tmp_path / "out").cells, "nothing is removed for what cannot be made"


def test_an_ablation_is_resumed_after_a_move(images, tmp_path):
    whole = run(images, tmp_path / "whole", ["ht"], 1)

    def stop(event: Event) -> None:
        if isinstance(event, StageFinished) and event.stage.endswith("stage1"):
            raise Interrupted("stage1", tmp_path)

    with pytest.raises(Interrupted):
        run(images, tmp_path / "here", ["ht"], 1, emit=stop)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = run(images, tmp_path / "there", ["ht"], 1, resume=True)
    weights = [
        (cell_path(each.path, "ht", 0) / "student/model.safetensors").read_bytes()
        for each in (whole, moved)
    ]
    assert weights[0] == weights[1]


def test_settings_that_all_arms_share_override_requested_ones_with_a_notice(images, tmp_path):
    events: list[Event] = []
    run(images, tmp_path / "out", ["kd"], 1, emit=events.append, hints__target="labels")
    notices = [event for event in events if isinstance(event, Notice)]
    overridden = [notice.message for notice in notices if notice.code == "setting-overridden"]
    assert "all arms use hints.target = 'teacher' instead of 'labels'" in overridden


@pytest.mark.parametrize("kind", ["values", "labels"])
def test_a_teacher_without_class_scores_is_refused(images, tmp_path, kind):
    with pytest.raises(TeacherError) as caught:
        run(images, tmp_path / "out", ["bp", "kd"], 1, teacher=None, teacher__output_kind=kind)
    assert caught.value.code == "teacher-without-classes"
    assert not (tmp_path / "out/bp").exists()


def test_images_without_labels_are_refused(images, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((images / "train").rglob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
    with pytest.raises(DataError) as caught:
        run(flat, tmp_path / "out", ["kd"], 1)
    assert caught.value.code == "labels-missing"


@pytest.mark.parametrize(("augment", "views"), [("none", [1, 1]), ("crop", [6, 2])])
def test_arms_share_cached_teacher_outputs(images, tmp_path, augment, views):
    events: list[Event] = []
    more = {"data__augment": augment, "stage1__epochs": 2, "stage2__epochs": 4}
    arms = ["kd-long", "kd", "ht", "shuffled"]
    found = run(images, tmp_path / "out", arms, 1, emit=events.append, **more)
    cached = [e for e in events if isinstance(e, StageStarted) and "teacher outputs" in e.stage]
    assert [(e.stage.rpartition("outputs, ")[2], e.num_epochs) for e in cached] == [
        ("stage2 train", views[0]),
        ("stage2 held out", 1),
        ("stage1 train", views[1]),
        ("stage1 held out", 1),
    ]
    apart = run(images, tmp_path / "apart", ["kd"], 1, run__cache_teacher="off", **more)
    assert apart.accuracies("kd") == found.accuracies("kd")


def test_a_teacher_of_other_classes_is_adapted_once(images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fitcompress.run.distill.check_teacher", lambda *_: None
    )  # two epochs: near chance
    found = run(
        images,
        tmp_path / "out",
        ["bp", "kd"],
        1,
        teacher=None,
        teacher__source="test_resnet",
        teacher__pretrained=False,
        teacher__epochs=2,
    )
    assert (found.path / "teacher/teacher/model.safetensors").is_file()
    for arm in found.arms:
        assert {s.stage for s in stages_of(found, arm)} == {"stage2"}


def test_runs_on_several_devices_are_those_of_one(images, tmp_path, monkeypatch):
    torch.save(toy_runs.trained_net().state_dict(), tmp_path / "net.pth")
    own = {"teacher": None, "teacher__weights": str(tmp_path / "net.pth")}
    spec = {"teacher__input_size": "3,12,12", "teacher__mean": "0.3,0.3,0.3"}
    own |= spec | {"teacher__std": "0.25,0.25,0.25"}
    one = run(images, tmp_path / "one", ["bp", "kd"], 1, **own)
    monkeypatch.setattr(cells, "visible_devices", lambda recipe: ["", ""])
    two = run(images, tmp_path / "two", ["bp", "kd"], 1, **own)
    assert {arm: one.accuracies(arm) for arm in one.arms} == {
        arm: two.accuracies(arm) for arm in two.arms
    }


def test_runs_on_several_devices_share_the_adapted_teacher(images, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "visible_devices", lambda recipe: ["", ""])
    weights = tmp_path / "four.pth"
    torch.save(toy_runs.make_net(4).state_dict(), weights)
    found = run(
        images,
        tmp_path / "out",
        ["bp", "kd"],
        1,
        teacher=None,
        teacher__weights=str(weights),
        teacher__num_classes=4,
        teacher__epochs=8,
        teacher__lr=0.01,
        teacher__input_size="3,12,12",
    )
    for arm in found.arms:
        assert {s.stage for s in stages_of(found, arm)} == {"stage2"}


# --- what is found -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mislabelled(images, tmp_path_factory) -> Path:
    """The same test images; of the training images two of three have another label."""
    root = tmp_path_factory.mktemp("images") / "mislabelled"
    shutil.copytree(images / "test", root / "test")
    generator = np.random.default_rng(2)
    for name in toy_runs.NAMES:
        (root / "train" / name).mkdir(parents=True)
    for label in range(3):
        for number in range(48):
            pixels = toy_runs.pixels_of(label, generator)
            said = toy_runs.NAMES[number % 3]
            Image.fromarray(pixels).save(root / "train" / said / f"{label}-{number:03}.png")
    return root


def test_an_effect_of_the_teacher_is_found(mislabelled, tmp_path):
    """The labels say nothing, the teacher knows the classes: distillation must be seen to help."""
    found = run(mislabelled, tmp_path / "out", ["bp", "kd"], 4)
    (answer,) = found.answers
    assert (answer.arm, answer.against, answer.n) == ("kd", "bp", 4)
    assert answer.mean > 0.3
    pooled = answer.mcnemar
    assert answer.p_holm < 0.05 and pooled.p_holm < 1e-6
    more = (pooled.only_arm - pooled.only_against) / pooled.n
    assert more == pytest.approx(answer.mean), "seeds are of one size"
    assert found.verdicts[0].endswith("helped")


class Forgetful(nn.Module):
    """Without norms, so that a stage that learns nothing leaves nothing behind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(3))
        )
        self.pool = nn.AdaptiveAvgPool2d((1, 3))
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(24, 3)

    def forward(self, x_NCHW):
        x_NCHW = self.drop(self.stem(x_NCHW))
        return self.head(self.pool(self.body(x_NCHW)).flatten(1))


@pytest.mark.slow
def test_no_effect_is_found_without_one(images, tmp_path, monkeypatch):
    """The teacher has the very weights that the student starts from: what the hint says, the
    student says already, but for the noise of its dropout. Sixteen seeds.
    """
    monkeypatch.setattr("fitcompress.run.distill.check_teacher", lambda *_: None)
    torch.manual_seed(0)
    blank = toy_runs.toy_teacher(Forgetful().eval())
    same = "student.init=inherit"
    found = run(
        images,
        tmp_path / "out",
        [],
        16,
        f"labels: {same}, stage1.epochs=0, stage2.lambda_kd=0, stage2.label_weight=1",
        f"hinted: {same}, stage2.lambda_kd=0, stage2.label_weight=1",
        teacher=blank,
        student__depth_mult=1.0,
        student__width_mult=1.0,
        hints__regressor_when_equal=False,
        stage2__optim__lr=0.008,
    )
    (answer,) = found.compare([("hinted", "labels")])
    assert answer.sd > 0, "all seeds agree: nothing could have been found"
    assert answer.p_holm > 0.05
    assert answer.low < 0 < answer.high
    assert verdict(replace(answer, subject="hints")).endswith("not significant")
