"""A stage that is killed at any moment resumes to the same bits."""

from __future__ import annotations

import json
import random
import time

import pytest
from helpers.forked import Forked
from helpers.toy_training import digest, make_distill, run_distill, summary, train_slowly


def _start(folder):
    """Begins or continues the training, and returns once it trains."""
    output = folder / "printed"
    output.unlink(missing_ok=True)
    paths = str(folder / "stage2.pt"), str(folder / "result.json")
    process = Forked(train_slowly, *paths, output=output)
    while not output.exists() or "ready" not in process.output:
        assert process.returncode is None, process.output
        time.sleep(0.001)
    return process


def _killed_runs(folder, num_kills, seed):
    """Starts and kills a run `num_kills` times, then lets it finish; returns its result."""
    moments = random.Random(seed)
    checkpoint_path, result_path = folder / "stage2.pt", folder / "result.json"
    for _ in range(num_kills):
        process = _start(folder)
        time.sleep(moments.uniform(0.0, 0.25))
        process.kill()
        process.wait()
        if result_path.exists():  # it finished before the kill: start again
            result_path.unlink()
            checkpoint_path.unlink()
    process = _start(folder)
    assert process.wait() == 0, process.output
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
