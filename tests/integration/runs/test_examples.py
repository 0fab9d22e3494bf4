"""The examples run as they stand, each in a process and a folder of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import fitcompress
from fitcompress.recipe.fields import flat_settings

EXAMPLES = Path(__file__).parents[3] / "examples"
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


def test_the_layers_that_are_paired_have_the_maps_of_the_paper():
    """FitNets, section 3 and appendix: the hint of 7 x 7 x 192, the guided convolution of each."""
    code = (
        "import json, torch, nets\n"
        "maps = {}\n"
        "def shape(net, index):\n"
        "    x = torch.zeros(1, 3, 32, 32)\n"
        "    return list(net.eval().layers[:index](x).shape[1:])\n"
        "maps['hint'] = shape(nets.fitnets_cifar_teacher(), 2)\n"
        "for name, guided in nets.GUIDED.items():\n"
        "    maps[name] = [guided, *shape(nets.fitnet(name, None, False), guided)]\n"
        "print(json.dumps(maps))\n"
    )
    maps = json.loads(run("-c", code, cwd=REPRODUCTIONS))
    assert maps.pop("hint") == [192, 7, 7]
    assert maps == {
        "fitnet1": [6, 32, 8, 8],
        "fitnet2": [6, 80, 8, 8],
        "fitnet3": [8, 80, 8, 8],
        "fitnet4": [11, 80, 8, 8],
        "30m-5": [2, 64, 8, 8],
        "30m-7": [4, 64, 8, 8],
        "30m-9": [5, 32, 8, 8],
        "30m-11": [7, 48, 8, 8],
        "107m-5": [2, 128, 8, 8],
        "107m-7": [4, 80, 8, 8],
        "107m-9": [5, 80, 8, 8],
        "107m-11": [7, 96, 8, 8],
    }


def test_the_grid_lists_every_cell_what_it_would_take_and_what_was_published(tmp_path):
    columns, _, *lines = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in run(REPRODUCTIONS / "grid.py", cwd=tmp_path).splitlines()
    )
    rows = {tuple(cells[:2]): dict(zip(columns, cells, strict=True)) for cells in lines}
    assert Counter(study for study, _ in rows) == {
        "table5": 4, "cifar100": 3, "today": 4, "depth": 8 * 3,
    }  # fmt: skip
    benchmark = rows["cifar100", "resnet32x4-resnet8x4"]
    # 2 operations x 50,000 images x 240 epochs x 3 passes x 0.18 G, three seeds, at 10 T a second
    assert benchmark["bp"] == f"3 not run, {3 * 2 * 5e4 * 240 * 3 * 0.18e9 / 1e13 / 3600:.1f} h"
    both = 1.08e9 + 3 * 0.18e9
    assert benchmark["kd"] == f"3 not run, {3 * 2 * 5e4 * 240 * both / 1e13 / 3600:.1f} h"
    assert benchmark["ht"] == f"3 not run, {3 * 2 * 5e4 * 260 * both / 1e13 / 3600:.1f} h"
    assert benchmark["kd-long"] == f"3 not run, {3 * 2 * 5e4 * 280 * both / 1e13 / 3600:.1f} h"
    assert benchmark["published"] == "bp 72.50, kd 73.33, FitNet 73.50, lskd 76.62"
    assert rows["table5", "fitnet4-paper"]["published"] == "ht 91.61"
    assert rows["depth", "30m-5-he"]["lskd"] == ""


def test_the_grid_counts_what_is_there_and_what_failed():
    code = (
        "import grid\n"
        "class Found:\n"
        "    arms = ('bp', 'kd')\n"
        "    failed = {('kd', 0): 'why', ('kd', 1): 'why'}\n"
        "    def accuracies(self, arm): return {'bp': {0: .5, 1: .6}, 'kd': {2: .7}}[arm]\n"
        "first = next(one for one in grid.experiments() if one.seeds == 5)\n"
        "print(grid.cell(first, 'bp', Found()), grid.cell(first, 'kd', Found()), sep='\\n')\n"
        "print(grid.cell(first, 'ht', Found()))\n"
    )
    bp, kd, ht = run("-c", code, cwd=REPRODUCTIONS).splitlines()
    assert bp.startswith("55.00% (n = 2); 3 not run, ")
    assert kd.startswith("70.00% (n = 1); 2 failed; 2 not run, ")
    assert ht.startswith("5 not run, ")


def test_a_table_has_errors_their_deviation_and_wrong_images():
    code = (
        "import tables\n"
        "from types import SimpleNamespace\n"
        "class Run:\n"
        "    def __init__(self, top1):\n"
        "        accuracy = SimpleNamespace(top1=top1, n=1000)\n"
        "        self.results = SimpleNamespace(student=SimpleNamespace(accuracy=accuracy))\n"
        "class Found:\n"
        "    arms, verdicts = ('bp', 'kd'), ['not significant']\n"
        "    cells = {('bp', 0): Run(.8), ('bp', 1): Run(.9)}\n"
        "    def accuracies(self, arm): return {'bp': {0: .8, 1: .9}, 'kd': {}}[arm]\n"
        "print(tables.table(Found()))\n"
    )
    _, _, row, _, verdict = run("-c", code, cwd=REPRODUCTIONS).splitlines()
    assert (row, verdict) == ("| bp | 15.00 | 7.07 | 200, 100 |", "not significant")


def test_studies_that_the_grid_does_not_know_are_refused():
    words = [sys.executable, "grid.py", "run", "tabel5"]
    done = subprocess.run(words, cwd=REPRODUCTIONS, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "tabel5: say which of first, table5" in done.stderr


PAPERS = {
    "hinton": {"stage1.epochs": 0, "stage2.tau": 20.0},
    "fitnets_mnist": {
        "stage1.optim.optimizer": "rmsprop", "stage2.optim.lr": 0.0005, "stage2.tau": 3.0,
        "stage2.tau_squared": False, "stage2.label_weight": 1.0, "stage2.lambda_kd": 4.0,
        "stage2.lambda_kd_end": 1.0, "hints.standardise": False, "student.init": "random",
    },
    "fitnets_cifar": {
        "stage1.optim.lr": 0.005, "stage2.optim.lr": 0.005, "stage2.epochs": 500,
        "stage2.optim.patience": 100, "stage2.optim.schedule": "constant", "stage2.tau": 3.0,
        "stage2.lambda_kd": 4.0, "stage2.lambda_kd_end": 1.0, "data.batch_size": 128,
        "data.augment": "flip",
    },
    "cifar100": {
        "stage2.epochs": 240, "stage2.optim.optimizer": "momentum", "stage2.optim.lr": 0.05,
        "stage2.optim.weight_decay": 5e-4, "stage2.optim.schedule": "steps",
        "stage2.optim.grad_clip": None, "stage2.optim.patience": None, "stage2.tau": 4.0,
        "stage2.label_weight": 0.1, "stage2.lambda_kd": 0.9, "data.batch_size": 64,
        "data.augment": "crop", "data.padding": 0.125, "run.precision": "fp32",
    },
    "cifar_arms": {"student.depth_mult": 2.0, "student.width_mult": 0.5, "stage2.tau": 4.0},
    "today": {"preset": "modern", "stage2.optim.optimizer": "adamw"},
}  # fmt: skip
"""What the papers and the benchmark's code say."""


@pytest.mark.parametrize("path", sorted(REPRODUCTIONS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_recipes_of_the_reproductions_say_what_the_papers_say(path):
    said = flat_settings(fitcompress.load_recipe(path))
    wanted = PAPERS[path.stem]
    assert {name: said[name] for name in wanted} == wanted
