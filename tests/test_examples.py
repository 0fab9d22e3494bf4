"""The examples run as they stand, each in a process and a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fitcompress

EXAMPLES = Path(__file__).parent.parent / "examples"
REPRODUCTIONS = EXAMPLES / "reproductions"


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


def test_the_nets_of_the_papers_are_as_large_as_the_papers_say():
    """FitNets, Table 5 and section 3.4, recounted with two pieces; the CIFAR-100 benchmark's own
    counts in millions.
    """
    code = (
        "import json, nets, benchmark_nets as b\n"
        "count = lambda net: sum(weight.numel() for weight in net.parameters())\n"
        "fitnets = [count(nets.fitnet(f'fitnet{n}', None, False)) for n in (1, 2, 3, 4)]\n"
        "mnist = [count(nets.fitnets_mnist_teacher()), count(nets.fitnets_mnist_student())]\n"
        "names = ('resnet32x4', 'resnet8x4', 'resnet110', 'resnet20', 'wrn_40_2', 'wrn_16_2')\n"
        "benchmark = [round(count(getattr(b, name)()) / 1e6, 2) for name in names]\n"
        "teacher = count(nets.fitnets_cifar_teacher())\n"
        "print(json.dumps([fitnets, mnist, benchmark, teacher]))\n"
    )
    fitnets, mnist, benchmark, teacher = json.loads(run("-c", code, cwd=REPRODUCTIONS))
    assert [round(number / 1e6, 3) for number in fitnets] == [0.251, 0.864, 1.506, 2.549]
    assert mnist[0] == 361_066 and round(mnist[1] / 1e3, 1) == 30.1
    assert benchmark == [7.43, 1.23, 1.74, 0.28, 2.26, 0.70]
    assert round(teacher / 1e6, 2) == 9.05


def test_the_grid_lists_every_cell_and_what_it_would_take():
    header, _, *lines = run("grid.py", cwd=REPRODUCTIONS).splitlines()
    assert "bp | kd | ht | kd-long | modern" in header
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert (
        len(cells) == 4 + 3 + 4 + 8 * 3
    )  # table 5, the benchmark, today, eight nets' three starts
    for study, _, *arms in cells:
        told = [arm for arm in arms if arm]
        assert len(told) == (5 if study == "cifar100" else 3)
        assert all("not run" in arm or "%" in arm for arm in told)


@pytest.mark.parametrize("path", sorted(REPRODUCTIONS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_reproductions_hold(path):
    recipe = fitcompress.load_recipe(path)
    assert recipe.stage2.epochs and recipe.teacher.input_size
