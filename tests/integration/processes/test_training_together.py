"""Several processes train like one that accumulates their batches."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from helpers import toy_processes
from helpers.forked import Forked, rank_environments


def start(folder: Path, num: int, stage: str, accumulate: int, shards: int = 0) -> list[Forked]:
    """The processes of a job."""
    folder.mkdir(exist_ok=True)
    paths = str(folder / "stage.pt"), str(folder / "out")
    words = (stage, *map(str, (accumulate, 4, 3, shards)))
    return [
        Forked(toy_processes.main, *paths, *words, output=folder / f"printed.{rank}", env=env)
        for rank, env in enumerate(rank_environments(num))
    ]


def finish(folder: Path, processes: list[Forked]) -> list[dict]:
    for process in processes:
        assert process.wait() == 0, process.output
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
        assert processes[0].returncode is None
        time.sleep(0.005)
    for process in reversed(processes):
        process.kill()
    assert [process.wait() for process in processes] == [-9, -9]
    resumed, _ = finish(folder, start(folder, 2, "stage2", 1, shards=shards))
    assert_same(resumed, unbroken, rtol=0)
