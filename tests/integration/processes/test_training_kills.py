"""A stage that is killed at any moment resumes to the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import toy_training
from helpers.toy_training import digest, make_distill, run_distill, summary

import fitcompress


def _start(checkpoint_path, result_path):
    package_home = str(Path(fitcompress.__file__).parents[1])
    script = str(Path(toy_training.__file__))
    return subprocess.Popen(
        [sys.executable, script, str(checkpoint_path), str(result_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [package_home, str(Path(toy_training.__file__).parents[1])]
            ),
            "OMP_NUM_THREADS": "1",
        },
    )


def _killed_runs(folder, num_kills, seed):
    """Starts and kills a run `num_kills` times, then lets it finish; returns its result."""
    moments = random.Random(seed)
    checkpoint_path, result_path = folder / "stage2.pt", folder / "result.json"
    for _ in range(num_kills):
        process = _start(checkpoint_path, result_path)
        process.stdout.readline()  # printed when training begins
        try:
            process.wait(timeout=moments.uniform(0.0, 0.25))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        if result_path.exists():  # it finished before the kill: start again
            result_path.unlink()
            checkpoint_path.unlink()
    process = _start(checkpoint_path, result_path)
    assert process.wait(timeout=120) == 0
    process.stdout.close()
    return json.loads(result_path.read_text(encoding="utf-8"))


def _unbroken(folder):
    result, objective = run_distill(folder / "unbroken.pt", epochs=8)
    return json.loads(json.dumps(summary(result, objective.trained)))


def test_a_run_killed_3_times_ends_with_the_bits_of_an_unbroken_one(tmp_path):
    assert _killed_runs(tmp_path, 3, seed=0) == _unbroken(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_run_killed_5_times_ends_with_the_bits_of_an_unbroken_one(tmp_path, seed):
    assert _killed_runs(tmp_path, 5, seed=seed + 1) == _unbroken(tmp_path)


def test_the_digest_changes_with_a_single_bit():
    network = make_distill().trained
    before = digest(network)
    network.upper[2].bias.data[0] += 1e-7
    assert digest(network) != before
