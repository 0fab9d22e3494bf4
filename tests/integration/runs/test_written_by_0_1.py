"""What 0.1.0 wrote is read, reported and resumed; `written_by_0_1/make.py` made the files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fitcompress
from fitcompress.events import EpochFinished, Event, StageStarted
from fitcompress.graph.lift import build_network
from fitcompress.models.open import open_teacher
from fitcompress.recipe.fields import with_settings
from fitcompress.recipe.recipe import Recipe, load_recipe, recipe_to_toml

ARCHIVE = Path(__file__).with_name("written_by_0_1") / "files.zip"
WORDINGS = ("headline", "notices", "verdicts", "subject", "meaning")
"""Entries of a report that are text, which later code may word differently."""


@pytest.fixture
def files(in_empty_folder):
    """A copy of the files in the current directory."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall()
    return in_empty_folder


def facts(value):
    """The value without sentences."""
    if isinstance(value, Mapping):
        return {key: facts(inner) for key, inner in value.items() if key not in WORDINGS}
    return [facts(inner) for inner in value] if isinstance(value, list) else value


def lost(old, new, path: str = "") -> list[str]:
    """Where `new` lacks an entry of `old` or has another value; entries may have been added."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        missing = [f"{path}/{key}" for key in old if key not in new]
        shared = [key for key in old if key in new]
        return [
            *missing,
            *(place for key in shared for place in lost(old[key], new[key], f"{path}/{key}")),
        ]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [place for number, (a, b) in pairs for place in lost(a, b, f"{path}/{number}")]
    return [] if old == new else [path]


def modification_times(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def recipe_of(run: str) -> Recipe:
    return load_recipe(Path("runs", run, "recipe.toml"))


def trained_epochs(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.stage, event.epoch) for event in events if isinstance(event, EpochFinished)]


def test_the_student_gives_the_same_outputs(files):
    expected = load_file("expected.safetensors")

    student = fitcompress.load("runs/finished")

    torch.testing.assert_close(student(expected["inputs"]), expected["student"], atol=1e-5, rtol=0)


def test_the_teacher_has_the_same_outputs_and_fingerprint(files):
    expected = load_file("expected.safetensors")

    teacher = open_teacher(recipe_of("finished").teacher)

    assert teacher.fingerprint == Path("fingerprint.txt").read_text()
    outputs = build_network(teacher.program)(expected["inputs"])
    torch.testing.assert_close(outputs, expected["teacher"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("run", "stored"), [("finished", "report.json"), ("ablation", "ablation_report.json")]
)
def test_the_report_has_the_same_facts(files, run, stored):
    old = json.loads(Path(stored).read_text())

    report = fitcompress.load_report(Path("runs", run))

    assert lost(facts(old), facts(json.loads(report.render("json")))) == []
    assert all(report.render(form) for form in ("text", "md", "html"))


def test_a_changed_report_is_noticed():
    old = {"student": {"params": 3, "depth": 2}, "stages": [{"epochs": 1}], "notices": ["a"]}
    new = {"student": {"params": 4}, "stages": [{"epochs": 1, "rate": 2}], "notices": ["b"]}

    assert lost(facts(old), facts(new)) == ["/student/depth", "/student/params"]


@pytest.mark.parametrize("run", ["finished", "interrupted", "ablation/teacher"])
def test_the_recipe_is_written_as_it_was_read(files, run):
    written = recipe_to_toml(recipe_of(run))

    assert written == Path("runs", run, "recipe.toml").read_text()


def test_an_interrupted_run_is_resumed_from_its_checkpoint_and_cache(files):
    cached, events = modification_times(Path("cache")), []

    fitcompress.distill(recipe_of("interrupted"), resume=True, emit=events.append)

    started = {event.stage: event for event in events if isinstance(event, StageStarted)}
    assert started["stage2"].first_epoch == 1
    assert trained_epochs(events) == [
        ("stage2", 2),
        ("stage2", 3),
        *(("baseline", epoch) for epoch in range(1, 6)),
    ]
    assert modification_times(Path("cache")) == cached
    # Rounding differs between processors; a different order of images changes far more than this.
    student = load_file("runs/interrupted/student/model.safetensors")
    expected = load_file("resumed.safetensors")
    torch.testing.assert_close(student, expected, atol=1e-4, rtol=1e-4)


def test_a_finished_ablation_is_resumed_without_training(files):
    events: list[Event] = []
    recipe = with_settings(recipe_of("ablation/teacher"), {"run.out": "runs/ablation"})
    written = modification_times(Path("runs/ablation/kd"))

    ablation = fitcompress.ablate(recipe, resume=True, emit=events.append)

    assert trained_epochs(events) == []
    assert modification_times(Path("runs/ablation/kd")) == written
    assert ablation.seeds == (0, 1)
    assert not ablation.missing
