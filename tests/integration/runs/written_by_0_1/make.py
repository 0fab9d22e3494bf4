"""Writes `files.zip`, the files of small runs as the code of commit 5545cf3 (0.1.0) wrote them.

    git worktree add ../old 5545cf3
    PYTHONPATH=../old python tests/integration/runs/written_by_0_1/make.py

It imports modules of that commit, so it does not run with later code. The archive holds

    data/  teacher/            images and a model folder
    runs/finished              with a baseline, exports and a report (`report.json`)
    runs/interrupted  cache/   stopped in stage 2 after its first epoch; cached teacher outputs
    runs/ablation              arms "bp" and "kd", seeds 0 and 1 (`ablation_report.json`)
    expected.safetensors       inputs and outputs of the teacher and of the finished student
    fingerprint.txt            of the teacher
    resumed.safetensors        weights of the student of runs/interrupted, resumed by 0.1.0
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import fitcompress
from fitcompress.events import EpochFinished, Event

_CLASSES = ("dark", "left", "right")
_SETTINGS = {
    "teacher.source": "teacher",
    "data.source": "data",
    "data.batch_size": 16,
    "data.augment": "shift",
    "data.views": 2,
    "student.width_mult": 0.5,
    "student.depth_mult": 1.5,
    "stage1.epochs": 2,
    "stage2.epochs": 3,
    "run.baseline": True,
    "run.timing": "torch",
    "run.device": "cpu",
    "run.threads": 1,
    "run.teacher_precision": "fp32",
    "run.teacher_layout": "contiguous",
}


def main() -> None:
    archive = Path(__file__).with_name("files.zip")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        _write_images()
        images_NCHW = _write_teacher()
        _finish(images_NCHW)
        _interrupt_and_resume()
        _ablate()
        _pack(archive)
        os.chdir("/")


def _write_images() -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 12)):
        for name in _CLASSES:
            folder = Path("data", split, name)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                if name != "dark":
                    pixels[:, slice(0, 4) if name == "left" else slice(4, 8)] += 120
                Image.fromarray(pixels).save(folder / f"{number:02}.png")


def _write_teacher() -> Tensor:
    """Trains a small network, writes its model folder; returns the normalized training images."""
    from fitcompress.model import save_model
    from fitcompress.planning import make_model

    torch.manual_seed(0)
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 8, 3, padding=1, bias=False))
    net.add_module("norm", nn.BatchNorm2d(8))
    net.add_module("relu", nn.ReLU())
    net.add_module("conv", nn.Conv2d(8, 16, 3, stride=2, padding=1))
    net.add_module("relu2", nn.ReLU())
    net.add_module("pool", nn.AdaptiveAvgPool2d(2))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(64, 3))
    files = sorted(Path("data/train").rglob("*.png"))
    pixels = np.stack([np.array(Image.open(file)) for file in files])
    x_NCHW = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
    labels_N = torch.tensor([_CLASSES.index(file.parent.name) for file in files])
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x_NCHW), labels_N).backward()
        optimizer.step()
    spec = fitcompress.InputSpec(shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
    teacher = fitcompress.teacher_from_module(net.eval(), spec, class_names=_CLASSES)
    model = make_model(teacher.program, teacher.interface)
    save_model(Path("teacher"), teacher.program, {}, teacher.interface, model.blocks)
    return x_NCHW


def _finish(images_NCHW: Tensor) -> None:
    from fitcompress.teacher import open_teacher

    recipe = _recipe("finished")
    fitcompress.distill(recipe)
    fitcompress.export(Path("runs/finished"), ["onnx", "safetensors"])
    _write_report("finished", "report.json")
    inputs = images_NCHW[::18].contiguous()
    with torch.no_grad():
        expected = {
            "inputs": inputs,
            "teacher": fitcompress.load("teacher")(inputs),
            "student": fitcompress.load("runs/finished")(inputs),
        }
    save_file(expected, "expected.safetensors")
    Path("fingerprint.txt").write_text(open_teacher(recipe.teacher).fingerprint)


def _interrupt_and_resume() -> None:
    from fitcompress.training.interrupts import Interrupted

    recipe = _recipe("interrupted", **{"run.cache_teacher": "cache", "run.cache_gb": 1})
    try:
        fitcompress.distill(recipe, emit=_interrupt)
    except Interrupted:
        shutil.copytree(".", "copy")
    os.chdir("copy")
    fitcompress.distill(recipe, resume=True)
    os.chdir("..")
    shutil.copy("copy/runs/interrupted/student/model.safetensors", "resumed.safetensors")
    shutil.rmtree("copy")


def _interrupt(event: Event) -> None:
    if isinstance(event, EpochFinished) and (event.stage, event.epoch) == ("stage2", 1):
        os.kill(os.getpid(), signal.SIGINT)


def _ablate() -> None:
    from fitcompress.arms import read_arms

    short = {"stage1.epochs": 1, "stage2.epochs": 1, "run.baseline": False, "run.timing": "none"}
    fitcompress.ablate(_recipe("ablation", **short), arms=read_arms(["bp", "kd"]), seeds=[0, 1])
    _write_report("ablation", "ablation_report.json")


def _recipe(run: str, **settings: object) -> fitcompress.Recipe:
    return fitcompress.resolve_recipe(settings={**_SETTINGS, "run.out": f"runs/{run}", **settings})


def _write_report(run: str, name: str) -> None:
    report = fitcompress.load_report(Path("runs", run))
    Path(name).write_text(report.render("json"))


def _pack(archive: Path) -> None:
    """Everything but what no test reads: pictures of the report, exports, checkpoints of runs that
    are finished.
    """
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(path for path in Path().rglob("*") if path.is_file()):
            is_used = "interrupted" in path.parts or path.parent.name != "checkpoints"
            if is_used and not {"thumbnails", "exports"} & {*path.parts}:
                file.write(path)


if __name__ == "__main__":
    main()
