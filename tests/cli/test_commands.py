"""The command line: flags into recipes, exit codes, what goes to stdout and what to stderr.

The pipeline is a recorder here; that the real one has these functions is held by test_api.
"""

from __future__ import annotations

import errno
import inspect
import json
import subprocess
import sys
import typing
from pathlib import Path

import pytest
import typer
from helpers.fakes import FakeFunctions
from typer.testing import CliRunner

import fitcompress
from fitcompress.ablation.arms import COMMON
from fitcompress.cli import commands, flags
from fitcompress.cli.commands import app
from fitcompress.cli.flags import Group
from fitcompress.errors import DataError, RunError
from fitcompress.events import Notice, StageFinished, StageStarted
from fitcompress.recipe.fields import flat_settings, setting_type, with_settings
from fitcompress.recipe.recipe import (
    Recipe,
    load_recipe,
    recipe_from_preset,
    recipe_to_toml,
    resolve_recipe,
)
from fitcompress.rundir import RunDir

GROUPS = [value for name in flags.__all__ if isinstance(value := getattr(flags, name), Group)]


def run(*words: str):
    return CliRunner().invoke(app, list(words), prog_name="fitcompress")


def recipe_of(pipeline: FakeFunctions) -> Recipe:
    """The recipe that the last call was given."""
    _, args, _ = pipeline.calls[-1]
    return next(value for value in args if isinstance(value, Recipe))


# --- help, version, imports --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["distill", "--help"], ["--version"], ["report", "--help"]],
    ids=" ".join,
)
def test_help_and_version_answer_without_torch_or_timm(words):
    code = (
        "import sys\nfrom fitcompress.cli import app\n"
        f"try: app({words!r}, prog_name='fitcompress')\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {'torch', 'timm', 'numpy', 'matplotlib', 'click', 'onnx'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "fitcompress" in done.stdout


def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "fitcompress", "--version"], capture_output=True, text=True
    )

    assert (done.returncode, done.stdout) == (0, f"fitcompress {fitcompress.__version__}\n")


def test_without_a_command_the_help_is_shown():
    result = run()

    assert "Usage: fitcompress" in result.output
    assert result.exit_code == 2


COMMANDS = ["distill", "ablate", "inspect", "plan", "train", "eval", "export", "report", "demo"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_examples_that_parse(command):
    help_text = run(command, "--help").stdout

    assert "Examples" in help_text
    assert "--json" in help_text
    assert "--quiet" in help_text
    assert "--debug" in help_text


def test_the_commands_are_those():
    assert sorted(typer.main.get_command(app).commands) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "name",
    [
        "--teacher",
        "--data",
        "--depth-mult",
        "--width-mult",
        "--out",
        "--hint",
        "--guided",
        "--hints",
        "--epochs",
        "--hint-epochs",
        "--batch-size",
        "--lr",
        "--seed",
        "--device",
        "--precision",
        "--preset",
        "--init",
        "--resume",
        "--config",
        "--set",
        "--student",
        "--teacher-weights",
        "--num-classes",
        "--input-size",
        "--mean",
        "--std",
        "--class-map",
        "--teacher-epochs",
        "--no-pretrained",
        "--no-adapt",
        "--baseline",
        "--workers",
        "--limit",
        "--force",
        "--json",
        "--quiet",
        "--debug",
    ],
)
def test_distill_takes_every_daily_flag(name):
    options = [option for item in _options("distill") for option in item.opts]

    assert name in options


def _options(command: str):
    return typer.main.get_command(app).commands[command].params


@pytest.mark.parametrize("command", COMMANDS)
def test_command_functions_are_thin(command):
    functions = {"eval": "evaluate"}
    source = inspect.getsource(commands)
    name = functions.get(command, command)
    body = source.split(f"\ndef {name}(", 1)[1].split('"""', 2)[2].split("\n\n\n", 1)[0]

    assert 0 < len(body.strip().splitlines()) <= 25


def test_shell_completion_is_offered():
    help_text = run("--help").stdout

    assert "--install-completion" in help_text


# --- flags into recipes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", [flag for group in GROUPS for flag in group.flags], ids=lambda flag: flag.name
)
def test_every_flag_names_settings_of_the_recipe(flag):
    assert set(flag.settings.split()) <= set(flat_settings(Recipe()))


@pytest.mark.parametrize(
    ("flag", "setting"),
    [
        ("--init", "student.init"),
        ("--log", "run.log"),
        ("--precision", "run.precision"),
        ("--teacher-precision", "run.teacher_precision"),
        ("--layout", "run.layout"),
        ("--teacher-layout", "run.teacher_layout"),
        ("--compile", "run.compile"),
    ],
)
def test_a_flag_takes_the_choices_of_its_setting_and_no_others(pipeline, flag, setting):
    for choice in typing.get_args(setting_type(Recipe(), setting)):
        assert run("distill", "--teacher", "resnet18", flag, choice).exit_code == 0
        assert flat_settings(recipe_of(pipeline))[setting] == choice
    assert run("distill", "--teacher", "resnet18", flag, "other").exit_code == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--depth-mult 1.5", {"student.depth_mult": 1.5}),
        ("--width-mult 0.5", {"student.width_mult": 0.5}),
        ("--init inherit", {"student.init": "inherit"}),
        ("--student resnet18", {"student.source": "resnet18"}),
        ("--data ./images", {"data.source": "./images"}),
        ("--limit 100", {"data.limit": 100}),
        ("--batch-size 8", {"data.batch_size": 8}),
        ("--workers 2", {"data.num_workers": 2}),
        ("--hint layer2", {"hints.hint": ("layer2",)}),
        ("--hint a --hint b", {"hints.hint": ("a", "b")}),
        ("--guided a,b", {"hints.guided": ("a", "b")}),
        ("--hints 2", {"hints.num_pairs": 2}),
        ("--epochs 3", {"stage2.epochs": 3}),
        ("--epochs 0", {"stage2.epochs": 0}),
        ("--hint-epochs 2", {"stage1.epochs": 2}),
        ("--lr 0.1", {"stage1.optim.lr": 0.1, "stage2.optim.lr": 0.1}),
        ("--seed 7", {"run.seed": 7}),
        ("--device cuda:1", {"run.device": "cuda:1"}),
        ("--precision bf16", {"run.precision": "bf16"}),
        ("--baseline", {"run.baseline": True}),
        ("--teacher-weights w.pth", {"teacher.weights": "w.pth"}),
        ("--no-pretrained", {"teacher.pretrained": False}),
        ("--num-classes 10", {"teacher.num_classes": 10}),
        ("--input-size 32", {"teacher.input_size": (3, 32, 32)}),
        ("--input-size 32x48", {"teacher.input_size": (3, 32, 48)}),
        ("--input-size 1,28,28", {"teacher.input_size": (1, 28, 28)}),
        ("--mean 0.5,0.4,0.3", {"teacher.mean": (0.5, 0.4, 0.3)}),
        ("--std 0.5", {"teacher.std": (0.5,)}),
        ("--class-map names.txt", {"teacher.class_map": "names.txt"}),
        ("--teacher-epochs 2", {"teacher.epochs": 2}),
        ("--no-adapt", {"teacher.adapt": False}),
        ("--set stage2.tau=3 --set data.mixup=0.2", {"stage2.tau": 3.0, "data.mixup": 0.2}),
        ("--set stage2.epochs=5 --epochs 3", {"stage2.epochs": 3}),
        ("--preset hinton", {"preset": "hinton", "stage1.epochs": 0}),
    ],
)
def test_a_flag_of_distill_sets_what_it_names_and_nothing_else(pipeline, words, expected):
    result = run("distill", "--teacher", "resnet18", "--out", "runs/x", *words.split())

    assert result.exit_code == 0, result.output
    base = recipe_from_preset("hinton" if "hinton" in words else "modern")
    asked = {"teacher.source": "resnet18", "run.out": "runs/x", **expected}
    assert recipe_of(pipeline) == with_settings(base, asked)


def test_a_recipe_file_lies_below_sets_and_flags(pipeline):
    Path("r.toml").write_text(
        '[teacher]\nsource = "vgg11"\n[hints]\nhint = ["a"]\n[stage2]\ntau = 5\nepochs = 9\n'
    )

    result = run("distill", "--config", "r.toml", "--epochs", "2", "--out", "runs/x")

    assert result.exit_code == 0, result.output
    recipe = recipe_of(pipeline)
    assert (recipe.teacher.source, recipe.stage2.tau, recipe.stage2.epochs) == ("vgg11", 5.0, 2)
    assert recipe.hints.hint == ("a",)


@pytest.mark.parametrize(
    ("teacher", "expected"),
    [
        ("resnet18", "runs/resnet18-1"),
        ("resnet50.a1_in1k", "runs/resnet50-1"),
        ("hf-hub:me/my-net", "runs/my-net-1"),
        ("models/old.pt", "runs/old-1"),
        ("my.package:make", "runs/make-1"),
    ],
)
def test_a_run_without_out_gets_a_fresh_name(pipeline, teacher, expected):
    run("distill", "--teacher", teacher)

    assert recipe_of(pipeline).run.out == expected


def test_a_name_that_is_taken_is_not_used_again(pipeline):
    Path("runs/resnet18-1").mkdir(parents=True)

    run("distill", "--teacher", "resnet18")

    assert recipe_of(pipeline).run.out == "runs/resnet18-2"


@pytest.mark.parametrize(
    ("words", "name", "args"),
    [
        (["export"], "export", (None, ["onnx"])),
        (["export", "runs/x", "--onnx", "--pt2"], "export", (Path("runs/x"), ["onnx", "pt2"])),
        (
            ["export", "--safetensors", "--torchscript"],
            "export",
            (None, ["safetensors", "torchscript"]),
        ),
        (["export", "--python"], "export", (None, ["python"])),
        (["report"], "load_report", (None,)),
        (["report", "runs/x"], "load_report", (Path("runs/x"),)),
        (["report", "a", "b", "c"], "load_comparison", ([Path("a"), Path("b"), Path("c")],)),
        (["demo"], "demo", (Path("runs/demo-1"),)),
        (["demo", "--out", "here"], "demo", (Path("here"),)),
    ],
)
def test_commands_on_runs_pass_on_what_was_named(pipeline, words, name, args):
    result = run(*words)

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][:2] == (name, args)


def test_distill_passes_resume_and_force_on(pipeline):
    run("distill", "--teacher", "resnet18", "--force")

    assert {key: pipeline.calls[-1][2][key] for key in ("resume", "force")} == {
        "resume": False,
        "force": True,
    }


def test_inspect_takes_its_teacher_as_a_word(pipeline):
    run("inspect", "resnet18", "--no-pretrained")

    assert recipe_of(pipeline).teacher.source == "resnet18"
    assert not recipe_of(pipeline).teacher.pretrained


def test_train_fine_tunes_into_a_folder_that_is_free(pipeline):
    result = run("train", "--model", "resnet18", "--data", "d", "--epochs", "2", "--lr", "0.01")

    assert result.exit_code == 0, result.output
    recipe = recipe_of(pipeline)
    assert pipeline.calls[-1][1][0] == "resnet18"
    assert (recipe.teacher.epochs, recipe.teacher.lr) == (2, 0.01)
    assert recipe.run.out == "teachers/resnet18-1"
    assert result.stdout == "model folder: teachers/resnet18-1\n"


def test_train_overwrites_nothing_without_force(pipeline):
    Path("t").mkdir()
    Path("t/keep").touch()

    refused = run("train", "--model", "resnet18", "--out", "t")
    forced = run("train", "--model", "resnet18", "--out", "t", "--force")

    assert refused.exit_code == 3
    assert "cannot write to 't': there is something already" in refused.stderr
    assert forced.exit_code == 0


def test_train_goes_on_by_its_stored_recipe(pipeline):
    recipe = resolve_recipe(settings={"teacher.source": "resnet18", "teacher.lr": 0.03})
    RunDir.create(Path("t/training")).write_text("recipe.toml", recipe_to_toml(recipe))

    result = run("train", "--resume", "--out", "t")

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][1][0] == "resnet18"
    assert pipeline.calls[-1][2]["resume"]
    assert (recipe_of(pipeline).teacher.lr, recipe_of(pipeline).run.out) == (0.03, "t")
    refused = run("train", "--resume", "--out", "t", "--lr", "0.1")
    assert refused.exit_code != 0
    assert "it was started with 0.03" in refused.stderr


def test_train_needs_a_model(pipeline):
    assert "name the model to train" in run("train").stderr
    assert "give the directory to go on in" in run("train", "--resume").stderr
    assert not pipeline.calls


def test_eval_measures_the_model_on_the_data(pipeline):
    result = run("eval", "runs/x/student", "--data", "d")

    assert pipeline.calls[-1][0] == "evaluate"
    assert pipeline.calls[-1][1][0] == "runs/x/student"
    assert recipe_of(pipeline).data.source == "d"
    assert result.stdout == "accuracy: 75.0 % (70.0 % to 80.0 %, n = 400)\n"


# --- resume ------------------------------------------------------------------------------------


@pytest.fixture
def stored(in_empty_folder):
    """A run directory with a resolved recipe."""
    recipe = with_settings(
        Recipe(),
        {
            "teacher.source": "resnet18",
            "stage2.epochs": 3,
            "run.out": "runs/x",
            "run.device": "cpu",
            "run.precision": "fp32",
        },
    )
    Path("runs/x").mkdir(parents=True)
    Path("runs/x/recipe.toml").write_text(recipe_to_toml(recipe))
    return recipe


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--out runs/x",
        "--teacher resnet18 --epochs 3",
        "--precision auto",
        "--preset modern",
        "--set stage2.epochs=3",
        "--config runs/x/recipe.toml",
    ],
)
def test_resume_takes_the_stored_recipe_and_flags_that_repeat_it(pipeline, stored, words):
    result = run("distill", "--resume", *words.split())

    assert result.exit_code == 0, result.output
    assert recipe_of(pipeline) == stored
    assert pipeline.calls[-1][2]["resume"] is True


def test_resume_may_move_to_other_hardware(pipeline, stored):
    run("distill", "--resume", "--device", "cuda", "--workers", "2")

    assert recipe_of(pipeline) == with_settings(
        stored, {"run.device": "cuda", "data.num_workers": 2}
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 4", "with stage2.epochs = 4: it was started with 3"),
        ("--teacher vgg11", "with teacher.source = 'vgg11': it was started with 'resnet18'"),
        ("--preset hinton", "with preset = 'hinton': it was started with 'modern'"),
        ("--set stage2.tau=9", "with stage2.tau = 9.0: it was started with 4.0"),
    ],
)
def test_resume_refuses_flags_that_contradict_the_run(pipeline, stored, words, message):
    result = run("distill", "--resume", *words.split())

    assert result.exit_code == 3
    assert message in result.stderr
    assert not pipeline.calls


def test_resume_of_a_run_that_moved_goes_on_where_it_is(pipeline, stored):
    Path("runs/x").rename("moved")

    run("distill", "--resume", "--out", "moved")

    assert recipe_of(pipeline) == with_settings(stored, {"run.out": "moved"})


def test_resume_of_a_run_killed_before_its_recipe_was_written_starts_it(pipeline):
    Path("runs/y").mkdir(parents=True)

    result = run("distill", "--resume", "--teacher", "resnet18", "--out", "runs/y")

    assert result.exit_code == 0, result.output
    assert recipe_of(pipeline).run.out == "runs/y"


@pytest.mark.parametrize("words", ["", "--out runs/none"])
def test_resume_without_a_run_is_an_error(pipeline, words):
    result = run("distill", "--resume", *words.split())

    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")


# --- exit codes and streams --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        "distill",
        "plan",
        "distill --teacher x --depth-mult deep",
        "distill --teacher x --init zero",
        "distill --teacher x --unknown",
        "report --format pdf",
        "inspect",
        "nothing",
    ],
)
def test_a_bad_flag_ends_with_2(pipeline, words):
    result = run(*words.split())

    assert result.exit_code == 2
    assert result.stdout == ""
    assert not pipeline.calls


def test_a_recipe_that_cannot_hold_ends_with_3_and_names_the_bound(pipeline):
    result = run("plan", "--teacher", "resnet18", "--depth-mult", "0.5")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "error: student.depth_mult must be at least 1, got 0.5\n"


def test_an_ablation_with_failed_runs_is_reported_and_ends_with_3(pipeline):
    pipeline.answers["ablate"].failed = {("ht", 0): "the loss is not finite"}
    result = run("ablate", "--teacher", "resnet18")
    assert result.exit_code == 3
    assert "the report" in result.output and "failed runs: 1" in result.output


def test_an_ablation_that_goes_on_repeats_what_all_arms_begin_with(pipeline, tmp_path):
    stored = with_settings(Recipe(), {**COMMON, "teacher.source": "resnet18"})
    run_dir = RunDir.create(tmp_path / "moved/teacher")
    run_dir.write_text("recipe.toml", recipe_to_toml(stored))
    config = tmp_path / "c.toml"
    config.write_text('[student]\ninit = "inherit"\n[run]\nbaseline = true\n')
    out = ("--out", str(tmp_path / "moved"))
    resumed = run("ablate", "--resume", *out, "--config", str(config), "--log", "tensorboard")
    assert resumed.exit_code == 0, resumed.output
    assert recipe_of(pipeline).student.init == "random"
    assert recipe_of(pipeline).run.log == "tensorboard"
    other = run("ablate", "--resume", *out, "--set", "stage2.tau=9")
    assert other.exit_code == 3 and "started with 4.0" in other.output


def test_going_on_where_nothing_was_begun_says_so(pipeline, tmp_path):
    for command in ("ablate", "train"):
        refused = run(command, "--resume", "--out", str(tmp_path / "nosuch"))
        assert refused.exit_code == 3 and "nothing was started there" in refused.output
    assert not pipeline.calls


def test_a_users_mistake_is_one_line_and_a_hint_and_ends_with_3(pipeline):
    pipeline.answers["plan"] = DataError("reading 'd':\n  it is empty", advice="name another")

    result = run("plan", "--teacher", "resnet18")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "error: reading 'd': it is empty\nhint: name another\n"


def test_a_long_error_stays_on_one_line(pipeline):
    pipeline.answers["plan"] = DataError("x" * 300)

    assert run("plan", "--teacher", "r").stderr == f"error: {'x' * 300}\n"


def test_debug_shows_the_traceback_of_a_users_mistake(pipeline):
    pipeline.answers["plan"] = DataError("it is empty")

    result = run("plan", "--teacher", "resnet18", "--debug")

    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("error: it is empty\n")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_a_disk_that_cannot_be_written_ends_with_3(pipeline, number):
    pipeline.answers["distill"] = OSError(number, "No can do", "runs/x/a.pt")

    result = run("distill", "--teacher", "resnet18")

    assert result.exit_code == 3
    assert result.stderr.startswith("error: No can do: runs/x/a.pt\nhint: ")


@pytest.mark.parametrize("fault", [AssertionError("ours"), OSError(errno.EIO, "broken")])
def test_a_fault_of_ours_is_not_hidden(pipeline, fault):
    pipeline.answers["plan"] = fault

    result = run("plan", "--teacher", "resnet18")

    assert result.exit_code == 1
    assert result.exception is fault


def test_an_interrupted_run_ends_with_130_and_says_how_to_go_on(pipeline, monkeypatch):
    def interrupted(recipe, **options):
        Path(recipe.run.out).mkdir(parents=True)
        (Path(recipe.run.out) / "recipe.toml").write_text(recipe_to_toml(recipe))
        raise KeyboardInterrupt

    monkeypatch.setattr(fitcompress, "distill", interrupted)

    result = run("distill", "--teacher", "resnet18", "--out", "runs/my run")

    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == (
        "error: interrupted; the checkpoint is kept\n"
        "hint: continue with: fitcompress distill --resume --out 'runs/my run'\n"
    )
    assert load_recipe(Path("runs/my run/recipe.toml")).teacher.source == "resnet18"


def test_an_interruption_before_anything_was_written_promises_nothing(pipeline):
    pipeline.answers["distill"] = KeyboardInterrupt()

    result = run("distill", "--teacher", "resnet18")

    assert result.exit_code == 130
    assert result.stderr == "error: interrupted before anything was written\n"


def test_an_interrupted_plan_ends_with_130(pipeline):
    pipeline.answers["plan"] = KeyboardInterrupt()

    result = run("plan", "--teacher", "resnet18")

    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize(
    "words",
    ["plan --teacher r", "inspect r", "eval m", "export", "train --model r", "distill --teacher r"],
)
def test_json_is_all_that_stdout_holds(pipeline, words):
    pipeline.events = [
        Notice(topic="data", message="built-in images"),
        StageStarted(stage="stage1", num_epochs=1, num_steps_per_epoch=2),
        StageFinished(stage="stage1", seconds=1.0, num_images=2, detail={}),
    ]
    pipeline.prints = "a library talks\n"

    result = run(*words.split(), "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) is not None
    assert "note: built-in images\n" in result.stderr
    assert "a library talks\n" in result.stderr


def test_quiet_shows_results_only(pipeline):
    pipeline.events = [Notice(topic="data", message="built-in images")]

    result = run("distill", "--teacher", "resnet18", "--quiet")

    assert result.stderr == ""
    assert result.stdout == "the report on a terminal\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "the report on a terminal\n"),
        ("--format text", "the report on a terminal\n"),
        ("--format md", "the report as md\n"),
        ("--format json", '{"form": "json"}\n'),
        ("--json", '{"form": "json"}\n'),
    ],
)
def test_report_prints_the_form_that_is_asked_for(pipeline, words, expected):
    assert run("report", *words.split()).stdout == expected


def test_report_as_html_is_a_file_in_the_run(pipeline, in_empty_folder):
    path = in_empty_folder / "runs/x/report.html"
    path.parent.mkdir(parents=True)

    result = run("report", "--format", "html")

    assert result.stdout == f"{path}\n"
    assert path.read_text() == "the report as html\n"


@pytest.mark.parametrize("form", ["text", "json", "md", "html"])
def test_report_writes_any_form_to_a_named_file(pipeline, form):
    result = run("report", "--format", form, "--output", "r.out")

    assert result.stdout == "r.out\n"
    expected = '{"form": "json"}' if form == "json" else f"the report as {form}\n"
    assert Path("r.out").read_text() == expected


def test_an_error_of_the_run_directory_is_passed_on(pipeline):
    pipeline.answers["load_report"] = RunError("there is no run", advice="make one")

    result = run("report")

    assert (result.exit_code, result.stderr) == (3, "error: there is no run\nhint: make one\n")
