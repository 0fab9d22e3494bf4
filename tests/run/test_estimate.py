"""The estimate of a run's training time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers import toy_runs
from torch import nn

from fitcompress.data.bundle import DataBundle, load_data
from fitcompress.events import ignore
from fitcompress.run import estimate
from fitcompress.run.estimate import estimate_training, training_seconds
from fitcompress.student.planner import Planned, plan_run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> DataBundle:
    """Images of which 42 are for training: 5 batches of 8."""
    images = toy_runs.write_images(tmp_path_factory.mktemp("images") / "stripes")
    bundle = load_data(toy_runs.toy_recipe(images, Path("run")).data, seed=0, emit=ignore)
    assert len(bundle.train) // 8 == 5
    return bundle


def with_pairs(planned: Planned, *shares: tuple[float, float]) -> Planned:
    """The plan with one hint pair for each two depths, as shares of the teacher and student."""
    (pair,) = planned.pairs
    pairs = [
        replace(
            pair,
            hint=replace(pair.hint, depth_share=teacher),
            guided=replace(pair.guided, depth_share=student),
        )
        for teacher, student in shares
    ]
    return replace(planned, pairs=tuple(pairs))


@pytest.mark.parametrize(
    ("shares", "stage1_s"),
    [
        ([(0.5, 0.25)], 2 * 0.5 + 1 * 0.25),
        ([(0.25, 0.2), (0.75, 0.6)], 2 * 0.75 + 1 * 0.6),
        ([(0.75, 0.6), (0.25, 0.2)], 2 * 0.75 + 1 * 0.6),
        ([(0.75, 0.2), (0.25, 0.6)], 2 * 0.75 + 1 * 0.6),
    ],
    ids=["one pair", "deepest last", "deepest first", "deepest of different pairs"],
)
@pytest.mark.parametrize("has_baseline", [False, True])
def test_stage_1_runs_both_networks_to_their_deepest_paired_layers(
    data, monkeypatch, shares, stage1_s, has_baseline
):
    monkeypatch.setattr(estimate, "_step_seconds", lambda *_, trains: 1.0 if trains else 2.0)
    recipe = toy_runs.toy_recipe(
        Path("images"), Path("run"), stage1__epochs=3, stage2__epochs=2, run__baseline=has_baseline
    )
    planned = with_pairs(plan_run(toy_runs.toy_teacher(), recipe, emit=ignore), *shares)

    seconds = training_seconds(recipe, data, planned)

    baseline_s = (3 + 2) * 1 if has_baseline else 0
    assert seconds == pytest.approx(5 * (3 * stage1_s + 2 * (2 + 1) + baseline_s))


def test_sharded_networks_are_not_timed(data):
    recipe = toy_runs.toy_recipe(Path("images"), Path("run"))
    planned = plan_run(toy_runs.toy_teacher(), recipe, emit=ignore)

    assert training_seconds(recipe, data, planned) > 0
    sharded = replace(recipe, run=replace(recipe.run, shard=True))
    assert training_seconds(sharded, data, planned) is None


@pytest.mark.parametrize(("has_baseline", "num_stages"), [(False, 2), (True, 3)])
def test_the_estimate_counts_a_checkpoint_and_a_model_per_stage(has_baseline, num_stages):
    recipe = toy_runs.toy_recipe(Path("images"), Path("run"), run__baseline=has_baseline)
    student = plan_run(toy_runs.toy_teacher(), recipe, emit=ignore).student

    notice = estimate_training(recipe, replace(student, network=nn.Linear(1023, 1024)), 90.0)

    assert notice.code == "training-estimate"
    assert notice.message.endswith(f"on cpu and write {4 * 4 * num_stages} MB")  # of 4 MB each
