"""The command line: flags into recipes, exit codes, stdout and stderr.

The public functions are fakes that bind every call to the real signature. The wording is in
`golden/`, see test_golden.
"""

from __future__ import annotations

import errno
import json
import re
import shlex
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
from fitcompress.cli import flags
from fitcompress.cli.commands import app
from fitcompress.cli.flags import FORMATS, Group
from fitcompress.data.builtin import load_builtin
from fitcompress.data.views import make_dataset
from fitcompress.errors import DataError, RecipeError, RunError
from fitcompress.events import Notice, StageFinished, StageStarted
from fitcompress.interface import InputSpec
from fitcompress.recipe.fields import flat_settings, setting_type, with_settings
from fitcompress.recipe.recipe import (
    Recipe,
    load_recipe,
    recipe_from_preset,
    recipe_to_toml,
    resolve_recipe,
)
from fitcompress.rundir import RunDir

GROUPS = [
    value
    for name in flags.__all__
    if isinstance(value := getattr(flags, name), Group) and value is not FORMATS
]


def run(*words: str):
    return CliRunner().invoke(app, list(words), prog_name="fitcompress")


def error_of(*words: str) -> dict[str, object]:
    """The error of a command that fails with exit code 3, as JSON."""
    result = run(*words, "--json")
    assert result.exit_code == 3, result.output
    return json.loads(result.stdout)["error"]


def recipe_of(pipeline: FakeFunctions) -> Recipe:
    """The recipe of the last call."""
    _, args, _ = pipeline.calls[-1]
    return next(value for value in args if isinstance(value, Recipe))


# --- help, version, imports --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--help"], ["distill", "--help"], ["--version"], ["report", "--help"]],
    ids=" ".join,
)
def test_help_and_version_do_not_import_torch_or_timm(words):
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


COMMANDS = ["distill", "ablate", "inspect", "plan", "train", "eval", "export", "report", "demo"]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_examples_of_a_command_run(pipeline, command):
    for folder, settings in (("runs/small", {}), ("runs/why/teacher", COMMON)):
        recipe = with_settings(Recipe(), {**settings, "teacher.source": "resnet18"})
        RunDir.create(Path(folder)).write_text("recipe.toml", recipe_to_toml(recipe))
    help_text = run(*command.split(), "--help").stdout
    examples = help_text.partition("Examples")[2].strip().splitlines()
    assert examples

    for example in examples:
        program, *words = shlex.split(example)
        result = run(*words)
        assert (program, result.exit_code) == ("fitcompress", 0), (example, result.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_text_is_a_sentence(command):
    for option in typer.main.get_command(app).commands[command].params:
        text = option.help.partition(" [dim]")[0]
        assert text[0].isupper() or text.split()[0] in ("timm", "torch.export"), text
        assert text.endswith("."), text


# --- flags into recipes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flag", [flag for group in GROUPS for flag in group.flags], ids=lambda flag: flag.name
)
def test_every_flag_names_settings_of_the_recipe(flag):
    assert set(flag.target.split()) <= set(flat_settings(Recipe()))


def test_every_export_format_has_one_flag():
    from fitcompress.exporters.formats import FORMATS as WRITERS

    assert sorted(flag.target for flag in FORMATS.flags) == sorted(WRITERS)


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
    expected = {"teacher.source": "resnet18", "run.out": "runs/x", **expected}
    assert recipe_of(pipeline) == with_settings(base, expected)


def test_flags_override_a_recipe_file(pipeline):
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
        (
            ["export", "--int8", "--with-preprocessing", "--fp16"],
            "export",
            (None, ["onnx-fp16", "onnx-int8", "onnx-pixels"]),
        ),
        (["report"], "load_report", (None,)),
        (["report", "runs/x"], "load_report", (Path("runs/x"),)),
        (["report", "a", "b", "c"], "load_comparison", ([Path("a"), Path("b"), Path("c")],)),
        (["demo"], "demo", (Path("runs/demo-1"),)),
        (["demo", "--out", "here"], "demo", (Path("here"),)),
    ],
)
def test_commands_on_runs_pass_their_arguments(pipeline, words, name, args):
    result = run(*words)

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][:2] == (name, args)


def test_export_passes_the_opset_and_force(pipeline):
    result = run("export", "runs/x", "--fp16", "--opset", "18", "--force")

    assert result.exit_code == 0, result.output
    name, args, options = pipeline.calls[-1]
    assert (name, args) == ("export", (Path("runs/x"), ["onnx-fp16"]))
    assert (options["opset"], options["force"]) == (18, True)


def test_the_fakes_refuse_arguments_that_the_real_functions_do_not_take(pipeline):
    with pytest.raises(TypeError, match="opsets"):
        fitcompress.export(None, ["onnx"], opsets=18)


def test_pareto_plans_several_students_and_plots_them(pipeline):
    result = run("plan", "--teacher", "resnet18", "--pareto", "--plot", "costs.svg", "--json")

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][0] == "plan_frontier"
    assert recipe_of(pipeline).teacher.source == "resnet18"
    assert json.loads(result.stdout) == pipeline.answers["plan_frontier"]
    assert "<svg" in Path("costs.svg").read_text()


def test_distill_passes_resume_and_force(pipeline):
    run("distill", "--teacher", "resnet18", "--force")

    assert {key: pipeline.calls[-1][2][key] for key in ("resume", "force")} == {
        "resume": False,
        "force": True,
    }


def test_inspect_takes_its_teacher_as_an_argument(pipeline):
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
    assert error_of("train", "--model", "resnet18", "--out", "t")["code"] == "folder-not-empty"
    assert forced.exit_code == 0


def test_train_resumes_with_its_stored_recipe(pipeline):
    recipe = resolve_recipe(settings={"teacher.source": "resnet18", "teacher.lr": 0.03})
    RunDir.create(Path("t/training")).write_text("recipe.toml", recipe_to_toml(recipe))

    result = run("train", "--resume", "--out", "t")

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][1][0] == "resnet18"
    assert pipeline.calls[-1][2]["resume"]
    assert (recipe_of(pipeline).teacher.lr, recipe_of(pipeline).run.out) == (0.03, "t")
    refused = error_of("train", "--resume", "--out", "t", "--lr", "0.1")
    assert (refused["code"], refused["setting"]) == ("resume-contradiction", "teacher.lr")
    assert (refused["expected"], refused["got"]) == (0.03, 0.1)


@pytest.mark.parametrize(("words", "flag"), [("train", "--model"), ("train --resume", "--out")])
def test_train_needs_a_model_or_a_folder_to_resume(pipeline, words, flag):
    result = run(*words.split())

    assert result.exit_code == 2
    assert f"Invalid value for {flag}" in result.stderr
    assert not pipeline.calls


def test_eval_measures_the_model_on_the_data(pipeline):
    result = run("eval", "runs/x/student", "--data", "d")

    assert pipeline.calls[-1][0] == "evaluate"
    assert pipeline.calls[-1][1][0] == "runs/x/student"
    assert recipe_of(pipeline).data.source == "d"
    assert result.stdout.startswith("accuracy: 75.0 % (70.0 % to 80.0 %, n = 400)\n")


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
    ("words", "setting", "new", "old"),
    [
        ("--epochs 4", "stage2.epochs", 4, 3),
        ("--teacher vgg11", "teacher.source", "vgg11", "resnet18"),
        ("--preset hinton", "preset", "hinton", "modern"),
        ("--set stage2.tau=9", "stage2.tau", 9.0, 4.0),
    ],
)
def test_resume_refuses_flags_that_contradict_the_run(pipeline, stored, words, setting, new, old):
    error = error_of("distill", "--resume", *words.split())

    assert (error["code"], error["setting"]) == ("resume-contradiction", setting)
    assert (error["got"], error["expected"]) == (new, old)
    assert not pipeline.calls


def test_resume_of_a_moved_run_continues_at_its_new_path(pipeline, stored):
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
    assert error_of("distill", "--resume", *words.split())["message"]
    assert not pipeline.calls


def test_several_processes_need_a_named_directory(pipeline, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")

    error = error_of("distill", "--teacher", "resnet18")

    assert (error["code"], error["processes"]) == ("out-required", 2)
    assert run("distill", "--teacher", "resnet18", "--out", "runs/x").exit_code == 0


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


def test_a_failing_command_prints_its_error_as_its_one_json_value(pipeline):
    result = run("plan", "--teacher", "resnet18", "--depth-mult", "0.5", "--json")

    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "error": {
            "code": "setting-out-of-bounds",
            "message": "student.depth_mult must be at least 1, got 0.5",
            "advice": "",
            "setting": "student.depth_mult",
            "expected": "at least 1",
            "got": 0.5,
        }
    }
    assert result.stderr == "error: student.depth_mult must be at least 1, got 0.5\n"


def test_facts_of_an_error_that_are_no_json_values_become_text(pipeline):
    pipeline.answers["plan"] = DataError("no", code="no", path=Path("a/b"), loss=float("nan"))

    error = error_of("plan", "--teacher", "resnet18")

    assert (error["path"], error["loss"]) == ("a/b", None)


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_ablation_with_failed_runs_is_reported_and_ends_with_3(pipeline, form):
    """The report is the one value of stdout then, since it holds the failures."""
    pipeline.answers["ablate"].failed = {("ht", 0): "the loss is not finite"}

    result = run("ablate", "--teacher", "resnet18", *form)

    assert result.exit_code == 3
    assert result.stdout == ('{"form": "json"}\n' if form else "the report on a terminal\n")
    assert result.stderr.startswith("error: running the ablation: 1 of the runs failed")


def test_a_resumed_ablation_keeps_the_settings_that_its_arms_share(pipeline, tmp_path):
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
    other = error_of("ablate", "--resume", *out, "--set", "stage2.tau=9")
    assert (other["code"], other["setting"]) == ("resume-contradiction", "stage2.tau")


@pytest.mark.parametrize("command", ["ablate", "train"])
def test_resuming_a_directory_where_nothing_was_started_is_an_error(pipeline, command):
    assert error_of(command, "--resume", "--out", "nosuch")["code"] == "nothing-to-resume"
    assert not pipeline.calls


def test_an_error_is_one_line_and_its_advice_another(pipeline):
    pipeline.answers["plan"] = DataError("reading 'd':\n  it is empty", advice="Name another.")

    result = run("plan", "--teacher", "resnet18")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "error: reading 'd': it is empty\nhint: Name another.\n"


def test_the_advice_on_unsupported_channels_parses(pipeline):
    spec = InputSpec(shape=(4, 8, 8), mean=(0.0,) * 4, std=(1.0,) * 4)
    with pytest.raises(RecipeError) as caught:
        make_dataset(load_builtin("test"), spec, augment="none", seed=0)
    flag, size = re.search(r"(--input-size) (\S+)\.", caught.value.advice).groups()

    assert run("inspect", "resnet18", flag, size).exit_code == 0
    assert recipe_of(pipeline).teacher.input_size == (3, 224, 224)


def test_a_long_error_stays_on_one_line(pipeline):
    pipeline.answers["plan"] = DataError("x" * 300)

    assert run("plan", "--teacher", "r").stderr == f"error: {'x' * 300}\n"


def test_debug_shows_the_traceback_and_the_code_of_an_error(pipeline):
    pipeline.answers["plan"] = DataError("it is empty", code="data-empty")

    result = run("plan", "--teacher", "resnet18", "--debug")

    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("error [data-empty]: it is empty\n")
    assert "Traceback" not in run("plan", "--teacher", "resnet18").stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "quota-full"),
        (errno.EACCES, "permission-denied"),
        (errno.EROFS, "disk-read-only"),
    ],
)
def test_a_disk_that_cannot_be_written_ends_with_3(pipeline, number, code):
    pipeline.answers["distill"] = OSError(number, "No can do", "runs/x/a.pt")

    error = error_of("distill", "--teacher", "resnet18")

    assert (error["code"], error["path"]) == (code, "runs/x/a.pt")
    assert error["message"] == "No can do: runs/x/a.pt"
    assert error["advice"]


@pytest.mark.parametrize("fault", [AssertionError("ours"), OSError(errno.EIO, "broken")])
def test_an_internal_error_is_not_hidden(pipeline, fault):
    pipeline.answers["plan"] = fault

    result = run("plan", "--teacher", "resnet18")

    assert result.exit_code == 1
    assert result.exception is fault


def test_an_interrupted_run_ends_with_130_and_the_command_that_resumes_it(pipeline, monkeypatch):
    def interrupted(recipe, **options):
        Path(recipe.run.out).mkdir(parents=True)
        (Path(recipe.run.out) / "recipe.toml").write_text(recipe_to_toml(recipe))
        raise KeyboardInterrupt

    monkeypatch.setattr(fitcompress, "distill", interrupted)

    result = run("distill", "--teacher", "resnet18", "--out", "runs/my run", "--json")

    assert result.exit_code == 130
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "interrupted"
    assert shlex.split(error["command"])[1:] == ["distill", "--resume", "--out", "runs/my run"]
    assert error["command"] in result.stderr
    assert load_recipe(Path("runs/my run/recipe.toml")).teacher.source == "resnet18"


def test_an_interruption_before_anything_was_written_offers_no_command(pipeline):
    pipeline.answers["distill"] = KeyboardInterrupt()

    result = run("distill", "--teacher", "resnet18")

    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "error: interrupted before anything was written\n"


def test_an_interrupted_plan_ends_with_130(pipeline):
    pipeline.answers["plan"] = KeyboardInterrupt()

    result = run("plan", "--teacher", "resnet18")

    assert (result.exit_code, result.stderr) == (130, "error: interrupted\n")


@pytest.mark.parametrize(
    "words",
    ["plan --teacher r", "inspect r", "eval m", "export", "train --model r", "distill --teacher r"],
)
def test_stdout_holds_nothing_but_json(pipeline, words):
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
def test_report_prints_the_requested_form(pipeline, words, expected):
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
    pipeline.answers["load_report"] = RunError("no run", code="run-missing", advice="Make one.")

    assert error_of("report") == {
        "code": "run-missing",
        "message": "no run",
        "advice": "Make one.",
    }
