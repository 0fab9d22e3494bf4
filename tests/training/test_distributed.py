"""Several processes train like one that accumulates their batches."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import toy_processes

import fitcompress
from fitcompress.errors import TrainingError
from fitcompress.training.device import start_accelerator
from fitcompress.training.distributed import ProcessGroup


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, num: int, stage: str, accumulate: int, size: int = 4, shards: int = 0):
    """The processes of a job."""
    home = Path(fitcompress.__file__).parents[1]
    paths = os.pathsep.join([str(home), str(Path(toy_processes.__file__).parents[1])])
    words = [stage, *map(str, (accumulate, size, 3, shards))]
    command = [
        sys.executable,
        toy_processes.__file__,
        str(folder / "stage.pt"),
        str(folder / "out"),
    ]
    shared = {
        **os.environ,
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(num),
        "LOCAL_WORLD_SIZE": str(num),
    }
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]
    folder.mkdir(exist_ok=True)
    return [
        subprocess.Popen(
            [*command, *words],
            env=shared | (own if num > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in ranks
    ]


def finish(folder: Path, processes) -> list[dict]:
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
    return [torch.load(folder / f"out.{rank}") for rank in range(len(processes))]


def train(folder: Path, num: int, stage: str, accumulate: int, **more: int) -> list[dict]:
    return finish(folder, start(folder, num, stage, accumulate, **more))


def assert_same(one: dict, other: dict, *, rtol: float) -> None:
    assert one["num_images"] == other["num_images"]
    for own, theirs in zip(one["losses"], other["losses"], strict=True):
        assert own == pytest.approx(theirs, rel=rtol)
    assert one["parameters"].keys() == other["parameters"].keys()
    for name, value in one["parameters"].items():
        if rtol and name.endswith(("lower.0.bias", "middle.0.bias")):
            continue  # the batch norm cancels them: their gradients are rounding errors
        torch.testing.assert_close(value, other["parameters"][name], rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_two_processes_train_like_one_that_accumulates(stage, tmp_path):
    first, second = train(tmp_path / "two", 2, stage, accumulate=1)
    (alone,) = train(tmp_path / "one", 1, stage, accumulate=2)
    # sums of gradients in another order, amplified by 18 steps of AdamW
    assert_same(first, alone, rtol=1e-3)
    assert alone["num_images"] == 3 * 48
    assert_same(first, second, rtol=0)
    assert first["held_out"] == second["held_out"]
    assert len(list((tmp_path / "two").glob("*.pt"))) == 1


def test_the_comparison_notices_another_job(tmp_path):
    (alone,) = train(tmp_path / "one", 1, "stage1", accumulate=2)
    (other,) = train(tmp_path / "other", 1, "stage1", accumulate=1)
    with pytest.raises(AssertionError):
        assert_same(alone, other, rtol=1e-3)


@pytest.mark.parametrize(("stage", "accumulate"), [("stage1", 1), ("stage2", 2)])
def test_sharded_networks_learn_the_same(stage, accumulate, tmp_path):
    whole, _ = train(tmp_path / "whole", 2, stage, accumulate)
    first, second = train(tmp_path / "shards", 2, stage, accumulate, shards=1)
    assert_same(first, whole, rtol=1e-3)
    assert_same(first, second, rtol=0)
    assert whole["sharing"] == []
    (shares,) = first["sharing"]
    assert len(shares) == len(whole["parameters"]) + (10 if stage == "stage2" else 8)  # teacher's
    assert all(1 / 3 <= share <= 2 / 3 for share in shares.values())  # 3 classes: 1 and 2
    assert all(first["buffers"][name].equal(second["buffers"][name]) for name in first["buffers"])
    for own, other in zip(first["held_out"], whole["held_out"], strict=True):
        assert own == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("shards", [0, 1])
def test_a_killed_job_resumes_to_the_same_end(shards, tmp_path):
    unbroken, _ = train(tmp_path / "unbroken", 2, "stage2", accumulate=1, shards=shards)
    folder = tmp_path / "killed"
    processes = start(folder, 2, "stage2", 1, shards=shards)
    while not (folder / "stage.pt").exists():
        assert processes[0].poll() is None
    processes[1].send_signal(signal.SIGKILL)
    processes[0].kill()
    for process in processes:
        process.communicate()
    resumed, _ = finish(folder, start(folder, 2, "stage2", 1, shards=shards))
    assert_same(resumed, unbroken, rtol=0)


def test_other_kinds_of_parallelism_are_refused():
    class Sharded:
        class distributed_type:
            value = "FSDP"

    with pytest.raises(TrainingError) as caught:
        ProcessGroup(Sharded())
    assert caught.value.code == "parallelism-unsupported"
    assert caught.value.facts["got"] == "FSDP"
    assert "--shard" in caught.value.advice


def test_one_process_cannot_shard():
    with pytest.raises(TrainingError) as caught:
        ProcessGroup(start_accelerator("cpu", "fp32"), is_sharded=True)
    assert caught.value.code == "shard-single-process"
