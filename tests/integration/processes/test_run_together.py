"""A whole run in two processes: the losses of one process, also after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from helpers import toy_runs
from helpers.toy_runs import SPEC, trained_net, write_images

import fitcompress

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_images(folder / "images", num_train=24)
    torch.save(trained_net().state_dict(), folder / "net.pth")
    return folder


def start(folder: Path, out: str, *, num: int, **more: object) -> subprocess.Popen:
    settings = {
        "teacher.weights": "net.pth",
        "teacher.input_size": "3,12,12",
        "teacher.mean": ",".join(map(str, SPEC.mean)),
        "teacher.std": ",".join(map(str, SPEC.std)),
        "student.width_mult": 0.5,
        "data.source": "images",
        "data.batch_size": 4,
        "data.views": 2,
        "stage1.epochs": 3,
        "stage2.epochs": 3,
        "run.device": "cpu",
        "run.teacher_layout": "contiguous",  # measured otherwise, and may differ between runs
        "run.timing": "torch",
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}"]
    home = Path(fitcompress.__file__).parents[1]
    paths = os.pathsep.join([str(home), str(Path(toy_runs.__file__).parents[1])])
    arguments = [
        "distill",
        "--teacher",
        "helpers.toy_runs:make_net",
        "--quiet",
        "--out",
        out,
        "--resume",
    ]
    return subprocess.Popen(
        [sys.executable, *(launcher if num > 1 else []), "-m", "fitcompress", *arguments, *sets],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def losses(run: Path) -> list[tuple[str, float]]:
    """The training loss of each epoch of both stages."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "EpochFinished"]
    return [(event["stage"], event["losses"]["loss"]) for event in epochs]


@pytest.fixture(scope="module")
def together(folder) -> str:
    return finish(start(folder, "two", num=2))


def test_two_processes_have_the_losses_of_one_that_accumulates(folder, together):
    finish(start(folder, "one", num=1, data__accumulate=2))
    two, one = losses(folder / "two"), losses(folder / "one")
    assert len(two) == 6
    for own, other in zip(two, one, strict=True):
        assert own[0] == other[0]
        # gradients are added in another order
        assert own[1] == pytest.approx(other[1], rel=1e-3)


def test_a_sharded_run_has_the_losses_of_an_unsharded_one(folder, together):
    finish(start(folder, "shards", num=2, run__shard="true", run__teacher_layout="channels-last"))
    shards, two = losses(folder / "shards"), losses(folder / "two")
    assert [stage for stage, _ in shards] == [stage for stage, _ in two]
    assert [loss for _, loss in shards] == pytest.approx([loss for _, loss in two], rel=1e-3)
    assert (folder / "shards/results.json").is_file()


def test_only_one_process_writes_and_prints(folder, together):
    assert together.count("fitcompress report") == 1
    lines = (folder / "two/events.jsonl").read_text().splitlines()
    starts = [line for line in lines if '"StageStarted"' in line and '"stage1"' in line]
    assert len(starts) == 1
    assert (folder / "two/results.json").is_file() and (folder / "two/student").is_dir()


def test_a_killed_process_ends_the_job_which_can_be_resumed(folder, together):
    job = start(folder, "killed", num=2)
    checkpoint = folder / "killed/checkpoints/stage1.pt"
    while not checkpoint.exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)
    workers = [p for p in psutil.Process(job.pid).children() if "fitcompress" in p.cmdline()]
    last = next(p for p in workers if p.environ()["RANK"] == "1")
    last.kill()
    output, _ = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "rank" in output and "-9" in output and str(last.pid) in output
    finish(start(folder, "killed", num=2))
    assert losses(folder / "killed")[-1] == losses(folder / "two")[-1]


def test_several_processes_need_an_output_directory(folder):
    process = subprocess.run(
        [sys.executable, "-m", "fitcompress", "distill", "--teacher", "resnet18"],
        env={**os.environ, "WORLD_SIZE": "2"},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 3
    assert "--out" in process.stderr
