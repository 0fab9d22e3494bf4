"""What a user can get wrong, through the command line: one line that names it, exit code 3."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from helpers.small_nets import reloaded, traced
from helpers.toy_runs import NAMES, SIDE, SPEC, TinyNet, make_net, trained_net, write_images
from PIL import Image
from typer.testing import CliRunner

import fitcompress
from fitcompress.cli.commands import app

TEACHER = "helpers.toy_runs:make_net"
INPUT = ["--input-size", f"3,{SIDE},{SIDE}", "--mean", "0.3,0.3,0.3", "--std", "0.25,0.25,0.25"]
QUICK = ["--epochs", "1", "--hint-epochs", "1", "--batch-size", "8", "--device", "cpu"]


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="fitcompress")


def refused(*words: object) -> str:
    """The error and its hint, two lines at most; nothing on stdout."""
    result = run(*words)
    assert result.exit_code == 3, (result.exit_code, result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.output
    assert not result.stdout
    return "\n".join(lines[lines.index(errors[0]) :])


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
    "unknown timm name": (["plan", "--teacher", "resnet5"], ["'resnet5'", "'resnet50'"]),
    "weights that do not fit": (
        distill("--teacher-weights", "other.pth"),
        ["other.pth", "stem.weight"],
    ),
    "weights of another format": (distill("--teacher-weights", "images"), ["'images'"]),
    "truncated weights": (distill("--teacher-weights", "half.pth"), ["half.pth"]),
    "pickled module": (with_teacher("pickled.pt"), ["pickled.pt", "torch.jit"]),
    "truncated archive": (with_teacher("half.pt"), ["half.pt"]),
    "no such file": (with_teacher("nothing.pt"), ["nothing.pt", "no such file"]),
    "no such factory": (with_teacher("helpers.toy_runs:make_nte"), ["make_nte", "make_net"]),
    "no adapting": (
        with_teacher("test_resnet", "--no-pretrained", "--no-adapt"),
        ["1000 classes", "the data has 3", "adapting is switched off"],
    ),
    "no adapting of an archive": (with_teacher("five.pt", *INPUT), ["5 classes", "the data has 3"]),
}


@pytest.mark.parametrize(("words", "parts"), TEACHERS.values(), ids=TEACHERS)
def test_teachers(folder, words, parts):
    message = refused(*words)

    for part in parts:
        assert part in message
    assert not (folder / "run/student").exists()


def test_pretrained_weights_that_cannot_be_had_are_named_where_the_teacher_fits(folder):
    message = refused(*with_teacher("test_resnet", "--num-classes", 3))

    assert "pretrained weights are unavailable" in message
    assert "--teacher-weights" in message
    assert len(message.splitlines()) == 2


def test_a_teacher_near_chance_is_refused_with_what_to_look_at(folder):
    (folder / "names.txt").write_text("\n".join([*NAMES[1:], NAMES[0]]))

    message = refused(*distill("--class-map", "names.txt"))

    assert "0.0% of 30" in message
    assert "--class-map" in message


# --- plans -------------------------------------------------------------------------------------

PLANS = {
    "depth": (["--depth-mult", "0.5"], "student.depth_mult must be at least 1"),
    "no width": (["--width-mult", "0"], "student.width_mult must be above 0"),
    "more width": (["--width-mult", "1.5"], "student.width_mult must be"),
    "unknown hint": (["--hint", "layer3"], "'layer3'"),
    "unknown guided": (["--guided", "layer1.9"], "'layer1.9'"),
    "two hints for one": (["--hint", "layer1,layer2", "--guided", "layer1"], "pairs"),
    "unknown setting": (["--set", "student.depth=2"], "student.depth"),
}


@pytest.mark.parametrize(("words", "part"), PLANS.values(), ids=PLANS)
def test_plans(folder, words, part):
    message = refused("plan", "--teacher", TEACHER, *INPUT, *words)

    assert part in message


def test_an_unknown_layer_comes_with_near_misses(folder):
    message = refused("plan", "--teacher", TEACHER, *INPUT, "--hint", "layer2.1.conv3")

    assert "Did you mean" in message
    assert "'layer2.1.conv" in message


def test_a_students_other_outputs_are_named(folder):
    (folder / "pairs.py").write_text(
        "import torch\nfrom toy_runs import make_net\ndef make(): return make_net(4)\n"
    )

    message = refused("plan", "--teacher", TEACHER, *INPUT, "--student", "pairs:make")

    assert "pairs:make" in message
    assert "4" in message


# --- images ------------------------------------------------------------------------------------


def own_images(folder: Path) -> Path:
    return write_images(folder / "mine", num_train=6, num_test=4)


def test_an_empty_class_folder_is_named(folder):
    (own_images(folder) / "train/nobody").mkdir()

    assert "nobody" in refused(*distill("--data", "mine"))


def test_a_folder_without_images_is_named(folder):
    (folder / "void").mkdir()

    assert "void" in refused(*distill("--data", "void"))


def test_unreadable_images_are_skipped_with_a_notice_up_to_a_limit(folder):
    images = own_images(folder)
    for number in range(2):
        (images / f"train/left/00{number}.png").write_bytes(b"no image")

    done = run(*distill("--data", "mine", "--set", "data.max_unreadable=2", "--no-adapt"))
    message = refused(*distill("--data", "mine", "--set", "data.max_unreadable=1", "--out", "b"))

    assert done.exit_code == 0, done.output
    assert "000.png" in done.stderr
    assert "unreadable" in done.stderr or "cannot be read" in done.stderr
    assert ".png" in message


# --- runs --------------------------------------------------------------------------------------


def test_a_directory_that_holds_a_run_or_anything_else_is_left_alone(folder):
    assert run(*distill()).exit_code == 0
    before = (folder / "run/results.json").read_bytes()
    Path("other").mkdir()
    Path("other/thesis.txt").write_text("mine")

    taken = refused(*distill())
    foreign = refused(*distill("--out", "other", "--force"))

    assert "already holds a run" in taken
    assert "--resume" in taken
    assert "not part of a run" in foreign
    assert (folder / "run/results.json").read_bytes() == before
    assert Path("other/thesis.txt").read_text() == "mine"


def test_a_loss_that_turns_nan_stops_with_its_step_and_can_be_reported(folder):
    message = refused(
        *distill("--set", "stage2.optim.lr=1e30", "--set", "stage2.optim.grad_clip=none")
    )

    assert "stage2" in message
    assert "step" in message
    assert (folder / "run/checkpoints/stage1.pt").is_file(), "what was good is kept"
    report = json.loads(run("report", "run", "--json").stdout)
    assert not report["is_finished"]
    assert [s["is_finished"] for s in report["stages"] if s["stage"] == "stage1"] == [True]
    assert "not trained yet" in refused("export", "run", "--onnx")


def test_a_truncated_checkpoint_is_named_on_resume(folder):
    assert run(*distill()).exit_code == 0
    (folder / "run/results.json").unlink()
    path = folder / "run/checkpoints/stage2.pt"
    path.write_bytes(path.read_bytes()[:500])

    message = refused("distill", "--resume", "--out", "run")
    path.unlink()
    again = run("distill", "--resume", "--out", "run")

    assert "stage2.pt" in message
    assert "--resume" in message
    assert again.exit_code == 0, again.output


def test_resuming_with_other_settings_is_refused(folder):
    assert run(*distill()).exit_code == 0

    message = refused(*distill("--resume", "--lr", "0.5"))

    assert "lr" in message


@pytest.mark.parametrize("victim", ["plan.json", "stage1.pt", "model.safetensors", "results.json"])
def test_no_space_left_is_one_line_and_the_run_goes_on_when_there_is(folder, monkeypatch, victim):
    real = os.replace

    def full(source, target, **options):
        if Path(target).name == victim:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return real(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        patch.setattr(Path, "replace", lambda path, target: full(path, target))
        message = refused(*distill())
    done = run("distill", "--resume", "--out", "run")

    assert "no space left" in message.lower()
    assert done.exit_code == 0, done.output
    assert fitcompress.load("run").interface.input.shape == SPEC.shape


@pytest.mark.parametrize("command", ["export", "report"])
def test_there_is_no_run(folder, command):
    assert "there is none" in refused(command)
    Path("empty").mkdir()
    assert "holds no run" in refused(command, "empty")


def test_an_export_that_is_there_already_is_kept(folder):
    assert run(*distill()).exit_code == 0
    assert run("export", "run", "--torchscript").exit_code == 0
    before = (folder / "run/exports/student.torchscript.pt").read_bytes()

    message = refused("export", "run", "--torchscript")

    assert "--force" in message
    assert (folder / "run/exports/student.torchscript.pt").read_bytes() == before


def test_a_file_that_is_no_model_is_refused_by_eval(folder):
    Image.new("RGB", (4, 4)).save("cat.png")

    assert "cat.png" in refused("eval", "cat.png", "--data", "images")
