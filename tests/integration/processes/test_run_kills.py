"""A whole run that is killed at any moment, in any stage, resumes to the same bits."""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers import toy_runs
from helpers.forked import Forked, run_command
from helpers.toy_runs import SPEC, trained_net, write_images

_TENSORS = ("student", "teacher", "baseline")


@dataclass(frozen=True)
class Scene:
    """The images, the weights of a teacher with other classes, and the files of an unbroken run."""

    folder: Path
    unbroken: dict[str, object]
    seconds: float
    """Duration of the unbroken run, from its first to its last event."""

    def start(self, out: Path) -> Forked:
        """Begins or resumes the run at `out`."""
        words = (*self._arguments(), "--out", str(out), "--resume")
        return Forked(run_command, *words, output=Path(f"{out}.txt"), cwd=self.folder)

    def _arguments(self) -> list[str]:
        settings = {
            "teacher.weights": "five.pth",
            "teacher.num_classes": 5,
            "teacher.input_size": "3,12,12",
            "teacher.mean": ",".join(map(str, SPEC.mean)),
            "teacher.std": ",".join(map(str, SPEC.std)),
            "teacher.epochs": 4,
            "teacher.lr": 0.01,
            "student.width_mult": 0.5,
            "data.source": "images",
            "data.batch_size": 8,
            "data.views": 3,
            "stage1.epochs": 4,
            "stage2.epochs": 6,
            "run.device": "cpu",
            "run.teacher_layout": "contiguous",  # measured otherwise, and may differ between runs
            "run.baseline": "true",
            "run.timing": "none",
        }
        sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        return ["distill", "--teacher", "helpers.toy_runs:make_net", "--quiet", *sets]


def finish(scene: Scene, out: Path) -> dict[str, object]:
    process = scene.start(out)
    assert process.wait() == 0, process.output
    return left_in(out)


def left_in(run: Path) -> dict[str, object]:
    """The results of a run that must not depend on how often it was stopped."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    stages = [{key: s[key] for key in ("stage", "epochs", "losses")} for s in results["stages"]]
    accuracies = {name: results[name]["accuracy"] for name in _TENSORS}
    bits = {name: (run / name / "model.safetensors").read_bytes() for name in _TENSORS}
    hidden = sorted(p.name for p in run.rglob("*") if p.name.endswith((".tmp", ".partial")))
    return {**bits, "stages": stages, "accuracies": accuracies, "hidden": hidden}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")
    write_images(folder / "images", num_train=24)
    torch.manual_seed(0)
    five = toy_runs.make_net(num_classes=5).state_dict()
    known = {k: v for k, v in trained_net().state_dict().items() if not k.startswith("head")}
    torch.save({**five, **known}, folder / "five.pth")
    scene = Scene(folder, {}, 0.0)
    unbroken = finish(scene, folder / "unbroken")
    lines = (folder / "unbroken/events.jsonl").read_text(encoding="utf-8").splitlines()
    times = [json.loads(line)["time"] for line in lines]
    return Scene(folder, unbroken, times[-1] - times[0])


def kill_in(scene: Scene, out: Path, wait_s: float) -> str:
    """The stage in which a run was killed, `wait_s` seconds after its start or resumption."""
    events = out / "events.jsonl"
    size = events.stat().st_size if events.is_file() else 0
    process = scene.start(out)
    while process.returncode is None and not (events.is_file() and events.stat().st_size > size):
        time.sleep(0.005)
    time.sleep(wait_s)
    process.kill()
    assert process.wait() in (0, -9), process.output
    lines = events.read_text(encoding="utf-8").splitlines()
    stages = [line.split('"stage": "')[1].split('"')[0] for line in lines if '"stage": "' in line]
    return stages[-1] if stages else "before"


def killed_runs(scene: Scene, num_kills: int, seed: int) -> set[str]:
    """Kills one run after another so often; each ends with the bits of the unbroken one."""
    moments = random.Random(seed)
    number, hit = 0, set()
    for _ in range(num_kills):
        out = scene.folder / f"killed-{seed}-{number}"
        hit.add(kill_in(scene, out, moments.uniform(0, scene.seconds)))
        if moments.random() < 0.5 or (out / "results.json").exists():
            assert finish(scene, out) == scene.unbroken
            number += 1
    out = scene.folder / f"killed-{seed}-{number}"
    assert finish(scene, out) == scene.unbroken
    return hit


def test_a_run_killed_3_times_ends_with_the_bits_of_an_unbroken_one(scene):
    killed_runs(scene, 3, seed=0)


@pytest.mark.slow
def test_a_run_killed_50_times_ends_with_the_bits_of_an_unbroken_one(scene):
    hit = killed_runs(scene, 50, seed=1)

    assert len(hit) >= 4, f"only {hit} were hit"


def test_the_comparison_notices_another_run(scene, tmp_path):
    assert scene.unbroken["stages"]
    assert {stage["stage"] for stage in scene.unbroken["stages"]} == {
        "teacher",
        "stage1",
        "stage2",
        "baseline",
    }
    assert left_in(scene.folder / "unbroken") == scene.unbroken
    path = scene.folder / "unbroken/student/model.safetensors"
    bits = path.read_bytes()
    try:
        path.write_bytes(bits[:-1] + bytes([bits[-1] ^ 1]))
        assert left_in(scene.folder / "unbroken") != scene.unbroken
    finally:
        path.write_bytes(bits)
