"""The examples run as they stand, each in a process and a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import fitcompress

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(*words: str | Path, cwd: Path) -> str:
    """What a Python program prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_quickstart_trains_a_student_that_can_be_loaded(tmp_path):
    printed = run(EXAMPLES / "quickstart/quickstart.py", "runs/q", cwd=tmp_path)

    assert "the student takes images of (3, 28, 28)" in printed
    student = fitcompress.load(tmp_path / "runs/q")
    assert len(student.interface.class_names) == 10
    assert fitcompress.load_report(tmp_path / "runs/q").is_finished


def test_the_archive_is_a_teacher_with_the_flags_that_are_printed(tmp_path):
    printed = run(EXAMPLES / "torchscript_teacher/make_teacher.py", "teacher.pt", cwd=tmp_path)
    page = (EXAMPLES / "torchscript_teacher/README.md").read_text("utf-8")

    flags = printed.strip().removeprefix("teacher.pt takes: ").split()
    assert " ".join(flags[2:]) in page
    plan = run(
        "-m", "fitcompress", "plan", "--teacher", "teacher.pt", *flags, "--json", cwd=tmp_path
    )
    assert json.loads(plan)["student"]["params"] < json.loads(plan)["teacher"]["params"]


def test_the_factory_is_found_in_the_current_folder_and_its_blocks_are_candidates(tmp_path):
    run(EXAMPLES / "custom_factory/clothes.py", tmp_path / "clothes.pth", cwd=tmp_path)

    words = ["clothes:make_network", "--teacher-weights", tmp_path / "clothes.pth"]
    code = "from fitcompress.cli import main; main()"
    layers = json.loads(
        run(
            "-c",
            code,
            "inspect",
            *words,
            "--input-size",
            "1,28,28",
            "--json",
            cwd=EXAMPLES / "custom_factory",
        )
    )
    assert [layer["name"] for layer in layers if layer["candidate"]] == ["1", "3", "4"]
