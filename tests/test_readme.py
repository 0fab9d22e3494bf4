"""Commands in the README, the guides and the examples run, or at least parse."""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from torch import nn
from typer.testing import CliRunner

import fitcompress
from fitcompress.ablation.arms import COMMON
from fitcompress.cli.commands import app
from fitcompress.recipe.recipe import recipe_to_toml

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
PAGES = [
    ROOT / "README.md",
    *sorted(EXAMPLES.glob("*/README.md")),
    *sorted(EXAMPLES.glob("guides/*.md")),
]
MOST_LINES = 200
TABLE = re.compile(r"^\| `(\w+)[ `]", re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )


def command_lines() -> list[tuple[str, str]]:
    """(page, line) of every line in every shell block."""
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
    ]


def commands_of(program: str) -> list[pytest.param]:
    """The arguments of every command in the pages that starts `program`."""
    return [
        pytest.param(words_of(part)[1:], id=f"{page}: {part.strip()}")
        for page, line in command_lines()
        for part in line.split("&&")
        if words_of(part)[0] == program
    ]


def words_of(command: str) -> list[str]:
    """The program and its arguments; of a launcher those of what it launches."""
    words = shlex.split(command)
    return words[words.index("-m") + 1 :] if words[0] in ("accelerate", "torchrun") else words


@pytest.mark.parametrize("words", commands_of("fitcompress"))
def test_a_command_is_taken_as_it_stands(pipeline, words):
    Path("runs/x").mkdir(parents=True)
    if "--config" in words:
        write_recipe(Path(words[words.index("--config") + 1]))
    if "--resume" in words:
        out = Path(words[words.index("--out") + 1])
        write_recipe(out / "recipe.toml")
        write_recipe(out / "teacher/recipe.toml", COMMON)  # an ablation's

    result = CliRunner().invoke(app, words)

    assert result.exit_code == 0, result.output
    assert pipeline.calls[-1][0] == function_of(words)


def write_recipe(path: Path, settings: Mapping[str, object] = MappingProxyType({})) -> None:
    recipe = fitcompress.resolve_recipe(settings={"teacher.source": "resnet50", **settings})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(recipe_to_toml(recipe), "utf-8")


def function_of(words: list[str]) -> str:
    """The public function that a command calls."""
    if words[0] == "report":
        runs = [word for word in words[1:] if word.startswith("runs/")]
        return "load_comparison" if len(runs) > 1 else "load_report"
    if words[0] == "plan" and "--pareto" in words:
        return "plan_frontier"
    return {"train": "train_teacher", "eval": "evaluate"}.get(words[0], words[0])


@pytest.mark.integration
@pytest.mark.parametrize(
    "words",
    [
        command
        for command in commands_of("fitcompress")
        if command.values[0][0] in ("plan", "inspect") and "--no-pretrained" in command.values[0]
    ],
)
def test_a_command_without_training_or_download_runs(in_empty_folder, words):
    result = CliRunner().invoke(app, [*words, "--json"])

    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(("{", "["))


@pytest.mark.parametrize("words", commands_of("python"))
def test_a_script_that_is_named_is_there(words):
    named = Path(words[0])
    folders = [ROOT, *(page.parent for page in PAGES)]

    assert any((folder / named).is_file() for folder in folders)


def test_every_line_of_every_block_is_of_a_kind_that_is_checked():
    programs = {words_of(part)[0] for _, line in command_lines() for part in line.split("&&")}

    assert programs <= {
        "fitcompress", "python", "python3", ".", "cd", "pip", "ruff", "mypy", "pytest",
    }  # fmt: skip


def test_the_check_script_runs_the_checks_of_the_readme():
    script = ROOT / ".ci/run"
    [line] = [line for _, line in command_lines() if line.endswith("&& pytest -n logical")]
    checks = parts_of(line.partition("activate && ")[2])
    run = [part for line in script.read_text("utf-8").splitlines() for part in parts_of(line)]

    assert "pytest -n logical" in checks
    assert [part for part in run if part in checks] == checks
    assert script.stat().st_mode & stat.S_IXUSR


def parts_of(line: str) -> list[str]:
    return [part.strip() for part in line.split("&&")]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem
)
def test_the_python_blocks_of_a_page_run_one_after_another(pipeline, monkeypatch, page):
    monkeypatch.setattr(fitcompress, "load", lambda path: ("loaded", path))
    names: dict[str, object] = {
        "my_module": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
    }

    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)

    recipe = names["recipe"]
    assert (recipe.teacher.source, recipe.student.width_mult) == ("resnet18", 0.5)
    assert names["student"] == ("loaded", recipe.run.out)
    assert pipeline.calls[-1][0] == "distill"
    if "teacher" in names:
        assert pipeline.calls[-1][2]["teacher"].num_classes == 10


def test_the_table_of_commands_is_complete():
    text = (ROOT / "README.md").read_text("utf-8")
    [section] = re.findall(r"^## Commands\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)

    assert sorted(TABLE.findall(section)) == sorted(app_commands())


def app_commands() -> list[str]:
    return [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_of_the_repository_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_links_to_every_guide_and_example():
    text = (ROOT / "README.md").read_text("utf-8")

    assert [page for page in PAGES if f"]({page.relative_to(ROOT)})" not in text] == PAGES[:1]


def test_the_readme_is_a_landing_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= MOST_LINES


def test_the_demo_s_transcript_is_in_the_guide_to_reports():
    [begin, end] = [f"<!-- transcript:{mark} -->" for mark in ("begin", "end")]
    text = (EXAMPLES / "guides/reading-a-report.md").read_text("utf-8")

    transcript = text[text.index(begin) : text.index(end)]
    assert "$ fitcompress demo\n" in transcript
    assert "Top-1 " in transcript
