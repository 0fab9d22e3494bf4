"""Errors that a user can cause, through the command line: two lines, exit code 3, and JSON."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.small_nets import reloaded, traced
from helpers.toy_runs import NAMES, SIDE, SPEC, TinyNet, make_net, trained_net, write_images
from PIL import Image
from typer.testing import CliRunner

import fitcompress
from fitcompress.cli.commands import app
from fitcompress.rundir import RunDir

TEACHER = "helpers.toy_runs:make_net"
INPUT = ["--input-size", f"3,{SIDE},{SIDE}", "--mean", "0.3,0.3,0.3", "--std", "0.25,0.25,0.25"]
TRAINING = ["--epochs", "1", "--hint-epochs", "1", "--batch-size", "8", "--device", "cpu"]
QUICK = [*TRAINING, "--set", "run.timing=none"]


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="fitcompress")


def refused(*words: object) -> dict[str, Any]:
    """The error as JSON on stdout: code, message, advice and facts; stderr has it in two lines."""
    result = run(*words, "--json")
    assert result.exit_code == 3, (result.exit_code, result.output, result.exception)
    assert "Traceback" not in result.output
    error = json.loads(result.stdout)["error"]
    lines = result.stderr.strip().splitlines()
    errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    hint = [f"hint: {error['advice']}"] if error["advice"] else []
    assert lines[errors[0] :] == [f"error: {error['message']}", *hint]
    return error


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Path:
    """Images, the weights of a trained network, and its archive."""
    folder = tmp_path_factory.mktemp("scene")
    write_images(folder / "images")
    torch.save(trained_net().state_dict(), folder / "good.pth")
    torch.save(TinyNet(width=4).state_dict(), folder / "other.pth")
    torch.save(make_net(), folder / "pickled.pt")
    reloaded(traced(trained_net(), torch.randn(2, 3, SIDE, SIDE)), folder / "archive.pt")
    torch.manual_seed(0)
    reloaded(traced(make_net(5).eval(), torch.randn(2, 3, SIDE, SIDE)), folder / "five.pt")
    whole = (folder / "archive.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "half.pth").write_bytes((folder / "good.pth").read_bytes()[:2000])
    return folder


@pytest.fixture
def folder(scene, in_empty_folder):
    """An empty folder to run in, with links to what lies in the scene."""
    for path in scene.iterdir():
        (in_empty_folder / path.name).symlink_to(path)
    return in_empty_folder


def distill(*more: object) -> list[object]:
    words = ["distill", "--teacher", TEACHER, "--teacher-weights", "good.pth"]
    return [*words, "--data", "images", "--out", "run", *INPUT, *QUICK, *more]


def with_teacher(source: str, *more: object) -> list[object]:
    return ["distill", "--teacher", source, "--data", "images", "--out", "run", *QUICK, *more]


# --- teachers ----------------------------------------------------------------------------------

TEACHERS = {
    "unknown timm name": (
        ["plan", "--teacher", "resnet5"],
        "timm-model-unknown",
        {"source": "resnet5"},
    ),
    "weights that do not fit": (
        distill("--teacher-weights", "other.pth"),
        "weights-mismatch",
        {"path": "other.pth", "missing": [], "unexpected": []},
    ),
    "a folder as weights": (
        distill("--teacher-weights", "images"),
        "no-such-file",
        {"path": "images"},
    ),
    "truncated weights": (
        distill("--teacher-weights", "half.pth"),
        "file-truncated",
        {"path": "half.pth"},
    ),
    "pickled module": (with_teacher("pickled.pt"), "pickle-refused", {"path": "pickled.pt"}),
    "truncated archive": (with_teacher("half.pt"), "file-truncated", {"path": "half.pt"}),
    "no such file": (with_teacher("nothing.pt"), "no-such-file", {"path": "nothing.pt"}),
    "no such factory": (
        with_teacher("helpers.toy_runs:make_nte"),
        "factory-missing",
        {"source": "helpers.toy_runs:make_nte"},
    ),
    "adapting is off": (
        with_teacher("test_resnet", "--no-pretrained", "--no-adapt"),
        "class-count-mismatch",
        {"teacher": "test_resnet", "got": 1000, "expected": 3},
    ),
    "an archive is not adapted": (
        with_teacher("five.pt", *INPUT),
        "class-count-mismatch",
        {"teacher": "five.pt", "got": 5, "expected": 3},
    ),
}


@pytest.mark.parametrize(("words", "code", "facts"), TEACHERS.values(), ids=TEACHERS)
def test_unusable_teachers_are_refused_before_training(folder, words, code, facts):
    error = refused(*words)

    assert error["code"] == code
    assert facts.items() <= error.items()
    assert not (folder / "run/student").exists()


def test_weights_of_another_shape_are_listed(folder):
    error = refused(*distill("--teacher-weights", "other.pth"))

    expected = "stem.weight (expected (8, 3, 3, 3), got (4, 3, 3, 3))"
    assert expected in error["message"] and expected in error["reshaped"]


def test_similar_names_are_suggested(folder):
    assert "'resnet50'" in refused("plan", "--teacher", "resnet5")["advice"]
    assert "'make_net'" in refused(*with_teacher("helpers.toy_runs:make_nte"))["advice"]


def test_unavailable_pretrained_weights_are_named(folder):
    error = refused(*with_teacher("test_resnet", "--num-classes", 3))

    assert (error["code"], error["source"]) == ("pretrained-unavailable", "test_resnet")
    assert "--teacher-weights" in error["advice"]


def test_a_teacher_near_chance_is_refused_with_what_to_check(folder):
    (folder / "names.txt").write_text("\n".join([*NAMES[1:], NAMES[0]]))

    error = refused(*distill("--class-map", "names.txt"))

    assert error["code"] == "teacher-near-chance"
    assert (error["accuracy"], error["num_images"], error["num_classes"]) == (0, 30, 3)
    assert "--class-map" in error["advice"]


# --- plans -------------------------------------------------------------------------------------

PLANS = {
    "depth": (
        ["--depth-mult", "0.5"],
        "setting-out-of-bounds",
        {"setting": "student.depth_mult", "got": 0.5},
    ),
    "no width": (
        ["--width-mult", "0"],
        "setting-out-of-bounds",
        {"setting": "student.width_mult", "got": 0},
    ),
    "more width": (
        ["--width-mult", "1.5"],
        "setting-out-of-bounds",
        {"setting": "student.width_mult", "got": 1.5},
    ),
    "unknown hint": (["--hint", "layer3"], "layer-unknown", {"layer": "layer3"}),
    "unknown guided": (["--guided", "layer1.9"], "layer-unknown", {"layer": "layer1.9"}),
    "two hints for one": (
        ["--hint", "layer1,layer2", "--guided", "layer1"],
        "hint-pairs-mismatch",
        {"hint": ["layer1", "layer2"], "guided": ["layer1"]},
    ),
    "unknown setting": (
        ["--set", "student.depth=2"],
        "setting-unknown",
        {"setting": "student.depth"},
    ),
}


@pytest.mark.parametrize(("words", "code", "facts"), PLANS.values(), ids=PLANS)
def test_impossible_plans_are_refused(folder, words, code, facts):
    error = refused("plan", "--teacher", TEACHER, *INPUT, *words)

    assert error["code"] == code
    assert facts.items() <= error.items()


def test_layers_with_similar_names_are_suggested(folder):
    error = refused("plan", "--teacher", TEACHER, *INPUT, "--hint", "layer2.1.conv3")

    assert error["code"] == "layer-unknown"
    assert "'layer2.1.conv" in error["advice"]


def test_a_custom_student_with_other_classes_is_refused(folder):
    (folder / "pairs.py").write_text(
        "from helpers.toy_runs import make_net\ndef make(): return make_net(4)\n"
    )

    error = refused("plan", "--teacher", TEACHER, *INPUT, "--student", "pairs:make")

    assert error["code"] == "teacher-head-fixed"
    assert error["message"].startswith("opening student 'pairs:make': ")
    assert (error["source"], error["expected"], error["got"]) == ("pairs:make", 3, 4)


# --- images ------------------------------------------------------------------------------------


def own_images(folder: Path) -> Path:
    return write_images(folder / "mine", num_train=6, num_test=4)


def test_an_empty_class_folder_is_named(folder):
    (own_images(folder) / "train/nobody").mkdir()

    error = refused(*distill("--data", "mine"))

    assert (error["code"], error["folders"]) == ("class-folder-empty", ["nobody"])


def test_a_folder_without_images_is_named(folder):
    (folder / "void").mkdir()

    error = refused(*distill("--data", "void"))

    assert (error["code"], error["path"]) == ("images-missing", "void")


def test_unreadable_images_are_skipped_with_a_notice_up_to_a_limit(folder):
    images = own_images(folder)
    for number in range(2):
        (images / f"train/left/00{number}.png").write_bytes(b"no image")

    done = run(*distill("--data", "mine", "--set", "data.max_unreadable=2", "--no-adapt"))
    error = refused(*distill("--data", "mine", "--set", "data.max_unreadable=1", "--out", "b"))

    assert done.exit_code == 0, done.output
    notices = [event for event in RunDir(Path("run")).read_events() if event["event"] == "Notice"]
    skipped = [each["message"] for each in notices if each["code"] == "image-unreadable"]
    assert [Path(message.split("'")[1]).name for message in skipped] == ["000.png", "001.png"]
    assert [each["code"] for each in notices].count("images-unreadable") == 1
    assert "unreadable image skipped: 'mine/train/left/000.png'" in done.stderr
    assert error["code"] == "too-many-unreadable"
    assert (error["expected"], error["got"]) == (1, 2)


# --- runs --------------------------------------------------------------------------------------


def test_a_directory_that_holds_a_run_or_anything_else_is_left_alone(folder):
    assert run(*distill()).exit_code == 0
    before = (folder / "run/results.json").read_bytes()
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("mine")

    taken = refused(*distill())
    foreign = refused(*distill("--out", "other", "--force"))

    assert (taken["code"], taken["path"]) == ("run-exists", "run")
    assert "--resume" in taken["advice"]
    assert (foreign["code"], foreign["path"]) == ("folder-not-empty", "other")
    assert (folder / "run/results.json").read_bytes() == before
    assert Path("other/thesis.txt").read_text() == "mine"


def test_a_loss_that_turns_nan_stops_with_its_step_and_can_be_reported(folder):
    error = refused(
        *distill("--set", "stage2.optim.lr=1e30", "--set", "stage2.optim.grad_clip=none")
    )

    assert error["code"] == "loss-not-finite"
    assert (error["stage"], error["epoch"]) == ("stage2", 1) and error["step"] > 1
    assert (folder / "run/checkpoints/stage1.pt").is_file(), "what was good is kept"
    report = json.loads(run("report", "run", "--json").stdout)
    assert not report["is_finished"]
    assert [s["is_finished"] for s in report["stages"] if s["stage"] == "stage1"] == [True]
    assert refused("export", "run", "--onnx")["code"] == "run-unfinished"


def test_a_truncated_checkpoint_is_named_on_resume(folder):
    assert run(*distill()).exit_code == 0
    (folder / "run/results.json").unlink()
    path = folder / "run/checkpoints/stage2.pt"
    path.write_bytes(path.read_bytes()[:500])

    error = refused("distill", "--resume", "--out", "run")
    path.unlink()
    again = run("distill", "--resume", "--out", "run")

    assert error["code"] == "checkpoint-unreadable"
    assert error["path"] == "run/checkpoints/stage2.pt"
    assert "--resume" in error["advice"]
    assert again.exit_code == 0, again.output


def test_resuming_with_other_settings_is_refused(folder):
    assert run(*distill()).exit_code == 0

    error = refused(*distill("--resume", "--lr", "0.5"))

    assert (error["code"], error["got"]) == ("resume-contradiction", 0.5)
    assert error["setting"].endswith(".lr")


FILES = {
    "plan.json": "disk-full",
    "stage1.pt": "checkpoint-not-written",
    "model.safetensors": "disk-full",
    "results.json": "disk-full",
}


@pytest.mark.parametrize(("victim", "code"), FILES.items(), ids=FILES)
def test_a_run_that_fills_the_disk_is_resumed(folder, monkeypatch, victim, code):
    real = os.replace

    def full(source, target, **options):
        if Path(target).name == victim:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return real(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Path, "replace", lambda path, target: full(path, target))
        error = refused(*distill())
    done = run("distill", "--resume", "--out", "run")

    assert (error["code"], Path(error["path"]).name) == (code, victim)
    assert "no space left" in error["message"].lower()
    assert done.exit_code == 0, done.output
    assert fitcompress.load("run").interface.input.shape == SPEC.shape


@pytest.mark.parametrize("command", ["export", "report"])
def test_a_missing_run_is_named(folder, command):
    assert refused(command)["code"] == "no-runs"
    Path("empty").mkdir()
    error = refused(command, "empty")
    assert (error["code"], error["path"]) == ("run-missing", "empty")


def test_an_existing_export_is_kept(folder):
    assert run(*distill()).exit_code == 0
    assert run("export", "run", "--torchscript").exit_code == 0
    before = (folder / "run/exports/student.torchscript.pt").read_bytes()

    error = refused("export", "run", "--torchscript")

    assert error["code"] == "export-exists"
    assert "--force" in error["advice"]
    assert (folder / "run/exports/student.torchscript.pt").read_bytes() == before


def test_a_file_that_is_no_model_is_refused_by_eval(folder):
    Image.new("RGB", (4, 4)).save("cat.png")

    error = refused("eval", "cat.png", "--data", "images")

    assert (error["code"], error["path"]) == ("model-format-unknown", "cat.png")
