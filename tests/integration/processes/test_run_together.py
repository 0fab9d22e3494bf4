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
from helpers.forked import Forked, rank_environments, run_command
from helpers.toy_runs import SPEC, trained_net, write_images

import fitcompress

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    write_images(folder / "images", num_train=24)
    torch.save(trained_net().state_dict(), folder / "net.pth")
    return folder


def arguments(out: str, **more: object) -> list[str]:
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
        "run.timing": "none",
        **{name.replace("__", "."): value for name, value in more.items()},
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    teacher = ("--teacher", "helpers.toy_runs:make_net")
    return ["distill", *teacher, "--quiet", "--out", out, "--resume", *sets]


def distill(folder: Path, out: str, *, num: int, **more: object) -> str:
    """What `num` processes of the command print, the first one's first."""
    processes = [
        Forked(
            run_command,
            *arguments(out, **more),
            output=folder / f"{out}.{rank}.txt",
            env=env,
            cwd=folder,
        )
        for rank, env in enumerate(rank_environments(num))
    ]
    for process in processes:
        assert process.wait() == 0, process.output
    return "".join(process.output for process in processes)


def launch(folder: Path, out: str) -> subprocess.Popen:
    """Two processes of the command, started by torchrun."""
    home = Path(fitcompress.__file__).parents[1]
    paths = os.pathsep.join([str(home), str(Path(toy_runs.__file__).parents[1])])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "fitcompress", *arguments(out)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(run: Path) -> list[tuple[str, float]]:
    """The training loss of each epoch of both stages."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "EpochFinished"]
    return [(event["stage"], event["losses"]["loss"]) for event in epochs]


@pytest.fixture(scope="module")
def together(folder) -> str:
    return distill(folder, "two", num=2, run__timing="torch")


def test_two_processes_have_the_losses_of_one_that_accumulates(folder, together):
    distill(folder, "one", num=1, data__accumulate=2)
    two, one = losses(folder / "two"), losses(folder / "one")
    assert len(two) == 6
    for own, other in zip(two, one, strict=True):
        assert own[0] == other[0]
        # gradients are added in another order
        assert own[1] == pytest.approx(other[1], rel=1e-3)


def test_a_sharded_run_has_the_losses_of_an_unsharded_one(folder, together):
    layout = "channels-last"
    distill(folder, "shards", num=2, run__shard="true", run__teacher_layout=layout)
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
    job = launch(folder, "killed")
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
    distill(folder, "killed", num=2)
    assert losses(folder / "killed")[-1] == losses(folder / "two")[-1]


def test_several_processes_need_an_output_directory(folder):
    words = ("distill", "--teacher", "resnet18")
    process = Forked(
        run_command, *words, output=folder / "refused.txt", env={"WORLD_SIZE": "2"}, cwd=folder
    )
    assert process.wait() == 3
    assert "--out" in process.output
