"""The wording of every command: its help, a typical output and its typical errors, stored in
`golden/COMMAND.txt`. `pytest --regolden` stores them anew, to review.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from helpers.fakes import FakeFunctions
from typer.testing import CliRunner

from fitcompress.cli.commands import app
from fitcompress.errors import DataError
from fitcompress.events import EpochFinished, Notice, StageFinished, StageStarted
from fitcompress.recipe.recipe import recipe_to_toml, resolve_recipe
from fitcompress.rundir import RunDir

GOLDEN = Path(__file__).parent / "golden"
Setup = Callable[[FakeFunctions], None]


def nothing(pipeline: FakeFunctions) -> None:
    """The functions return their typical results."""


def with_progress(pipeline: FakeFunctions) -> None:
    pipeline.events = [
        Notice(topic="data", code="data-builtin", message="using the built-in images"),
        StageStarted(stage="stage2", num_epochs=2, num_steps_per_epoch=141, first_epoch=1),
        EpochFinished(
            stage="stage2",
            epoch=2,
            losses={"loss": 0.5123, "kd": 0.25},
            held_out={"loss": 0.625, "top1": 0.912},
            seconds=9.0,
            images_per_s=1000.0,
        ),
        StageFinished(stage="stage2", seconds=75.0, num_images=9000, detail={}),
    ]


def with_stored_run(pipeline: FakeFunctions) -> None:
    settings = {"teacher.source": "resnet18", "stage2.epochs": 3, "run.out": "runs/small"}
    run = RunDir.create(Path("runs/small"))
    run.write_text("recipe.toml", recipe_to_toml(resolve_recipe(settings=settings)))


def with_interruption(pipeline: FakeFunctions) -> None:
    with_stored_run(pipeline)
    pipeline.answers |= {"distill": KeyboardInterrupt(), "demo": KeyboardInterrupt()}


def with_full_disk(pipeline: FakeFunctions) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/small/checkpoint.pt")
    pipeline.answers["distill"] = full


def with_bad_data(pipeline: FakeFunctions) -> None:
    pipeline.answers["evaluate"] = DataError(
        "opening data 'images': expected images, got none",
        code="images-missing",
        advice="Pass a folder of images, or of class folders of images.",
        path="images",
    )


def with_taken_folder(pipeline: FakeFunctions) -> None:
    Path("teachers/r18").mkdir(parents=True)
    Path("teachers/r18/model.safetensors").touch()


def with_failed_runs(pipeline: FakeFunctions) -> None:
    pipeline.answers["ablate"].failed = {("ht", 0): "the loss is not finite"}


COMMANDS: dict[str, list[tuple[str, Setup]]] = {
    "fitcompress": [("", nothing), ("compress", nothing)],
    "distill": [
        ("distill --teacher resnet18 --out runs/small", with_progress),
        ("distill", nothing),
        ("distill --teacher resnet18 --init zero", nothing),
        ("distill --teacher resnet18 --target-params 10% --width-mult 0.3", nothing),
        ("distill --teacher resnet18 --set tau=3", nothing),
        ("distill --teacher resnet18 --set stage2.tau=hot --json", nothing),
        ("distill --teacher resnet18 --config recipe.toml", nothing),
        ("distill --resume", nothing),
        ("distill --resume --epochs 4", with_stored_run),
        ("distill --teacher resnet18 --out runs/small", with_interruption),
        ("distill --teacher resnet18 --out runs/other --json", with_interruption),
        ("distill --teacher resnet18 --json", with_full_disk),
    ],
    "ablate": [
        ("ablate --teacher resnet18", nothing),
        ("ablate --teacher resnet18 --arms bp,kx", nothing),
        ("ablate --teacher resnet18 --json", with_failed_runs),
        ("ablate --resume", nothing),
        ("ablate --resume --out runs/none", nothing),
    ],
    "inspect": [
        ("inspect resnet18", nothing),
        ("inspect", nothing),
        ("inspect resnet18 --input-size large", nothing),
        ("inspect resnet18 --input-size 3,0,8 --json", nothing),
    ],
    "plan": [
        ("plan --teacher resnet18", nothing),
        ("plan --teacher resnet18 --pareto", nothing),
        ("plan", nothing),
        ("plan --teacher resnet18 --depth-mult 0.5", nothing),
        ("plan --teacher resnet18 --target-latency soon", nothing),
        ("plan --teacher resnet18 --hint layer2 --hint layer3 --guided layer2", nothing),
    ],
    "train": [
        ("train --model resnet18 --data images", nothing),
        ("train", nothing),
        ("train --model resnet18 --out teachers/r18", with_taken_folder),
        ("train --resume", nothing),
        ("train --resume --out teachers/none", nothing),
    ],
    "eval": [
        ("eval runs/small/student --data images", nothing),
        ("eval", nothing),
        ("eval runs/small/student --data images", with_bad_data),
        ("eval runs/small/student --data images --json", with_bad_data),
    ],
    "export": [
        ("export runs/small --onnx --int8", nothing),
        ("export --json", nothing),
        ("export --opset new", nothing),
    ],
    "report": [
        ("report runs/small", nothing),
        ("report runs/small --format html --output small.html", nothing),
        ("report --format pdf", nothing),
    ],
    "demo": [
        ("demo", nothing),
        ("demo --out runs/small", with_interruption),
    ],
}


@pytest.fixture(autouse=True)
def plain_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 columns without colors, wherever the tests run."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", None)
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", None)
    for name in ("FORCE_COLOR", "PY_COLORS", "CLICOLOR_FORCE", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def transcript(monkeypatch, tmp_path, pipeline) -> Callable[[str, Setup], str]:
    """Runs a command line in a folder of its own and gives what it shows."""
    typical = dict(pipeline.answers)

    def run(line: str, setup: Setup) -> str:
        folder = tmp_path / f"case-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        pipeline.answers.update(typical)
        pipeline.answers["ablate"].failed = {}
        pipeline.events = []
        setup(pipeline)
        words = line.split()
        result = CliRunner().invoke(app, words, prog_name="fitcompress")
        assert result.exception is None or isinstance(result.exception, SystemExit), line
        shown = [f"$ {' '.join(['fitcompress', *words])}", result.stdout.rstrip("\n")]
        if result.stderr:
            shown += ["[stderr]", result.stderr.rstrip("\n")]
        if result.exit_code:
            shown.append(f"[exit {result.exit_code}]")
        return "\n".join(line.rstrip() for part in shown if part for line in part.splitlines())

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_the_wording_of_a_command(command, transcript, request):
    helped = "--help" if command == "fitcompress" else f"{command} --help"
    cases = [(helped, nothing), *COMMANDS[command]]

    text = "\n\n".join(transcript(line, setup) for line, setup in cases) + "\n"

    path = GOLDEN / f"{command}.txt"
    if request.config.getoption("--regolden", default=False):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_every_command_has_a_golden_file():
    commands = {"fitcompress", *typer.main.get_command(app).commands}

    assert set(COMMANDS) == commands == {path.stem for path in GOLDEN.iterdir()}
