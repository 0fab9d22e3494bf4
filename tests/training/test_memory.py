"""Out of memory: batches become smaller and steps stay the same, or the error gives advice."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from helpers.toy_training import digest, make_distill, make_views, run_distill

from fitcompress.errors import TrainingError
from fitcompress.events import Notice
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.train_config import TrainConfig, plan_batches


def _limited(most: int, from_batch: int = 0):
    """An objective that runs out of memory with more than `most` images, from some batch on."""
    objective = make_distill()
    losses, seen = objective.losses, []

    def some_losses(batch, progress):
        seen.append(len(batch))
        found = losses(batch, progress)
        if len(batch) > most and len(seen) > from_batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch")
        return found

    objective.losses = some_losses
    return objective, seen


@pytest.mark.integration
@pytest.mark.parametrize("from_batch", [0, 10])
def test_smaller_batches_continue_with_the_same_steps(from_batch, tmp_path):
    events = []
    objective, seen = _limited(2, from_batch)
    held_out = make_views(12, seed=1, augment="none")
    more = {"data": (make_views(48), held_out), "epochs": 2}
    result, _ = run_distill(
        tmp_path / "a.pt", objective=objective, auto_batch=True, emit=events.append, **more
    )
    notices = [event.message for event in events if isinstance(event, Notice)]
    assert [notice.split("accumulates ")[1][:21] for notice in notices] == [
        "2 batches of 4 images",
        "4 batches of 2 images",
    ]
    assert result.num_images == 96 and seen[-1] == 2
    if from_batch == 0:  # every step was one of small batches
        _, other = run_distill(tmp_path / "b.pt", batch_size=2, accumulate=4, **more)
        assert digest(objective.trained) == digest(other.trained)


def test_an_odd_batch_is_divided_by_its_smallest_factor(tmp_path):
    objective, seen = _limited(3)
    run_distill(tmp_path / "a.pt", objective=objective, auto_batch=True, batch_size=9, epochs=1)
    assert seen[0] == 9 and seen[-1] == 3


@pytest.mark.parametrize("settings", [{}, {"auto_batch": True, "batch_size": 1}])
def test_out_of_memory_is_an_error_with_advice(settings, tmp_path):
    objective, _ = _limited(0)
    with pytest.raises(TrainingError) as caught:
        run_distill(tmp_path / "a.pt", objective=objective, **settings)
    assert caught.value.code == "out-of-memory"
    assert caught.value.facts["batch_size"] == settings.get("batch_size", 8)
    assert "Tried to allocate" in caught.value.message
    assert ("--auto-batch" in caught.value.advice) != bool(settings)


def test_auto_batch_with_several_processes_is_refused(tmp_path):
    config = TrainConfig(
        stage="stage1",
        optim=OptimRecipe(),
        epochs=1,
        batch_size=2,
        seed=0,
        checkpoint_path=tmp_path,
        auto_batch=True,
    )
    with pytest.raises(TrainingError) as caught:
        plan_batches(config, num_train=8, num_held_out=0, num_processes=2)
    assert caught.value.code == "auto-batch-multiprocess"
    assert caught.value.facts["num_processes"] == 2


_FAULTS = """
import resource, sys, torch
from fitcompress.training.memory import keep_freed_memory
if sys.argv[1] == "reused":
    keep_freed_memory()
def step():
    blocks = [torch.ones(size << 18) for size in range(1, 40)]  # 1 to 40 MB
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.integration
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_not_faulted_in_again():
    faults = {}
    for way in ("default", "reused"):
        command = [sys.executable, "-c", _FAULTS, way]
        faults[way] = int(subprocess.run(command, capture_output=True, check=True).stdout)
    assert faults["reused"] < 0.05 * faults["default"]
