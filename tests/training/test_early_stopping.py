"""Stages that end early, compared with runs of a fixed number of epochs."""

from __future__ import annotations

import pytest
from helpers.toy_training import digest, make_distill, make_views, run_distill, summary

from fitcompress.errors import DataError, RecipeError
from fitcompress.recipe.schema import OptimRecipe, Stage2Recipe
from fitcompress.training.checkpoint import read_checkpoint
from fitcompress.training.signals import Interrupted

STEADY = {"lr": 0.02, "schedule": "constant", "warmup_epochs": 0.0}


def run(path, optim, epochs):
    """A stage whose loss and learning rate do not change with its length."""
    objective = make_distill(Stage2Recipe(tau=3.0, lambda_kd=1.0, label_weight=1.0))
    return run_distill(path, objective=objective, optim=optim, epochs=epochs)


def test_a_stage_ends_with_the_weights_of_its_best_epoch(tmp_path):
    patient, whole = OptimRecipe(**STEADY, patience=3), OptimRecipe(**STEADY)
    result, objective = run(tmp_path / "a.pt", patient, 30)
    scores = [epoch["held_out"]["top1"] for epoch in result.history]
    best = scores.index(max(scores)) + 1
    assert result.epochs == best + 3 < 30
    _, expected = run(tmp_path / "b.pt", whole, best)
    assert digest(objective.trained) == digest(expected.trained)
    _, last = run(tmp_path / "c.pt", whole, best + 3)
    assert digest(objective.trained) != digest(last.trained)


def test_without_labels_the_loss_decides(tmp_path):
    held_out = make_views(24, seed=3, augment="none", labeled=False)
    result, _ = run_distill(
        tmp_path / "a.pt",
        epochs=30,
        optim=OptimRecipe(**STEADY, patience=2),
        data=(make_views(mixup=0.2), held_out),
    )
    losses = [epoch["held_out"]["loss"] for epoch in result.history]
    assert losses.index(min(losses)) + 1 == result.epochs - 2


def test_with_averaging_a_stage_ends_with_its_best_average(tmp_path):
    settings = {**STEADY, "ema": 0.9}
    result, objective = run(tmp_path / "a.pt", OptimRecipe(**settings, patience=3), 30)
    _, expected = run(tmp_path / "b.pt", OptimRecipe(**settings), result.epochs - 3)
    assert digest(objective.trained) == digest(expected.trained)


def test_a_run_stopped_while_it_waits_for_improvement_ends_the_same(tmp_path):
    path, optim = tmp_path / "a.pt", OptimRecipe(**STEADY, patience=3)
    unbroken = run_distill(path, epochs=30, optim=optim)
    path.unlink()
    objective, epochs = make_distill(), []

    def stop(event):
        epochs.append(event)
        if getattr(event, "epoch", 0) == unbroken[0].epochs - 1:
            raise Interrupted("stage2", path)

    with pytest.raises(Interrupted):
        run_distill(path, epochs=30, optim=optim, objective=objective, emit=stop)
    assert not read_checkpoint(path)["finished"]
    resumed = run_distill(path, epochs=30, optim=optim, resume=True)
    assert summary(*_of(resumed)) == summary(*_of(unbroken))
    assert read_checkpoint(path)["finished"]
    loaded = run_distill(path, epochs=30, optim=optim, resume=True)
    assert summary(*_of(loaded)) == summary(*_of(unbroken))


def _of(run):
    result, objective = run
    return result, objective.trained


def test_early_stopping_needs_held_out_images(tmp_path):
    optim = OptimRecipe(**STEADY, patience=3)
    with pytest.raises(DataError) as caught:
        run_distill(tmp_path / "a.pt", optim=optim, data=(make_views(), None))
    assert caught.value.code == "held-out-images-missing"


def test_patience_is_at_least_one_epoch():
    with pytest.raises(RecipeError, match=r"optim\.patience"):
        OptimRecipe(patience=0)
