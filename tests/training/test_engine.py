"""The training loop learns, trains only what it should, resumes exactly and fails clearly."""

from __future__ import annotations

import errno
import os
import signal

import pytest
import torch
from helpers.toy_training import (
    SPEC,
    Lower,
    Net,
    digest,
    make_distill,
    make_net,
    make_views,
    run_distill,
    summary,
)
from sklearn.datasets import load_digits
from torch import nn

from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.objectives import SupervisedObjective
from fitcompress.distillation.regressors import make_regressor
from fitcompress.errors import DataError, RecipeError, TrainingError
from fitcompress.events import EpochFinished, Progress, StageFinished, StageStarted
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.checkpoint import read_checkpoint
from fitcompress.training.signals import Interrupted
from fitcompress.training.stage_result import StageResult, last_events


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoints" / "stage.pt"


def _hint_objective(student):
    regressor, _ = make_regressor((8, 3, 3), (4, 3, 3), non_negative_hint=True, when_equal=True)
    return HintObjective(
        Lower(make_net(8, seed=1)),
        Lower(student),
        HintMatcher([regressor]),
        teacher_preprocess=Preprocess(SPEC),
        student_preprocess=Preprocess(SPEC),
    )


def _digits():
    digits = load_digits()
    pixels = (digits.images * 15.9).astype("uint8")
    views = [
        make_views(pixels=pixels[part], labels=digits.target[part], augment="none")
        for part in (slice(0, 1200), slice(1200, 1797))
    ]
    return tuple(views)


@pytest.mark.integration
def test_supervised_training_learns_the_digits(path):
    torch.manual_seed(0)
    objective = SupervisedObjective(Net(16, 10), student_preprocess=Preprocess(SPEC))
    result, _ = run_distill(path, objective=objective, epochs=5, batch_size=32, data=_digits())
    assert result.held_out["top1"] > 0.9
    assert result.history[0]["held_out"]["loss"] > result.held_out["loss"]


@pytest.mark.integration
def test_a_student_learns_the_digits_from_its_teacher_without_labels(path):
    torch.manual_seed(0)
    teacher = Net(16, 10)
    digits = _digits()
    supervised = SupervisedObjective(teacher, student_preprocess=Preprocess(SPEC))
    run_distill(path, objective=supervised, epochs=5, batch_size=32, data=digits)
    distill = make_distill(is_labeled=False)
    distill.teacher[1], distill.trained = teacher, Net(8, 10)
    result, _ = run_distill(path, objective=distill, epochs=6, batch_size=32, data=digits)
    assert result.held_out["agreement"] > 0.85
    assert "top1" not in result.held_out and "ce" not in result.losses


def test_stage_1_lowers_the_hint_loss_and_trains_only_the_guided_part(path):
    student = make_net(4, seed=2)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    result, _ = run_distill(path, objective=_hint_objective(student), epochs=4)
    changed = {
        name for name, value in student.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == {name for name in before if not name.startswith("upper")}
    assert result.losses["loss"] < 0.5 * result.history[0]["losses"]["loss"]


def test_the_optimizer_of_stage_1_holds_exactly_the_cut_network_and_the_regressor(path):
    student = make_net(4, seed=2)
    _, objective = run_distill(path, objective=_hint_objective(student), epochs=1)
    num = sum(len(g["params"]) for g in read_checkpoint(path)["optimizer"]["param_groups"])
    lower = [*student.lower.parameters(), *student.middle.parameters()]
    assert num == len(lower) + 2  # the regressor's weight and bias
    assert {id(p) for p in lower} < {id(p) for p in objective.trained.parameters()}


@pytest.mark.parametrize("kind", ["hint", "distill"])
def test_teacher_weights_and_batchnorm_statistics_do_not_move(path, kind):
    objective = _hint_objective(make_net(4, seed=2)) if kind == "hint" else make_distill()
    before = digest(objective.teacher)
    run_distill(path, objective=objective)
    assert digest(objective.teacher) == before


def test_two_runs_end_with_the_same_bits(path):
    first, second = (summary(r, o.trained) for r, o in (run_distill(path), run_distill(path)))
    assert first == second


def test_another_seed_ends_with_other_bits(path):
    first, second = run_distill(path), run_distill(path, seed=1)
    assert digest(first[1].trained) != digest(second[1].trained)


def test_workers_change_nothing(path):
    first, second = run_distill(path, epochs=1), run_distill(path, epochs=1, num_workers=1)
    assert summary(first[0], first[1].trained) == summary(second[0], second[1].trained)


def _stop_after(num_steps, objective=None):
    """An objective during whose step `num_steps` a SIGINT arrives."""
    objective = objective or make_distill()
    losses, count = objective.losses, iter(range(1, 10**6))

    def stopped(batch, progress):
        if next(count) == num_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return losses(batch, progress)

    objective.losses = stopped
    return objective


def _stop_in_evaluation():
    objective = make_distill()
    evaluate = objective.evaluate

    def stopped(batch):
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(batch)

    objective.evaluate = stopped
    return objective


@pytest.mark.parametrize("num_steps", [1, 4, 6, 7, 12], ids=lambda n: f"step {n} of 18")
def test_a_run_stopped_in_any_step_resumes_to_the_bits_of_an_unbroken_one(path, num_steps):
    unbroken = run_distill(path)
    path.unlink()
    with pytest.raises(Interrupted):
        run_distill(path, objective=_stop_after(num_steps))
    position = read_checkpoint(path)["position"]
    assert position["epoch"] * 6 + position["step"] == num_steps
    result, objective = run_distill(path, resume=True)
    assert summary(result, objective.trained) == summary(unbroken[0], unbroken[1].trained)


def test_a_run_stopped_in_the_evaluation_resumes_to_the_same_bits(path):
    unbroken = run_distill(path)
    path.unlink()
    with pytest.raises(Interrupted):
        run_distill(path, objective=_stop_in_evaluation())
    assert read_checkpoint(path)["position"]["step"] == 6
    result, objective = run_distill(path, resume=True)
    assert summary(result, objective.trained) == summary(unbroken[0], unbroken[1].trained)


def test_stage_1_resumes_with_its_regressor_to_the_same_bits(path):
    unbroken = run_distill(path, objective=_seeded_hint_objective())
    path.unlink()
    with pytest.raises(Interrupted):
        run_distill(path, objective=_stop_after(9, _seeded_hint_objective()))
    result, objective = run_distill(path, objective=_seeded_hint_objective(), resume=True)
    assert summary(result, objective.trained) == summary(unbroken[0], unbroken[1].trained)


def _seeded_hint_objective():
    torch.manual_seed(3)
    return _hint_objective(make_net(4, seed=2))


def test_a_stop_in_the_very_last_step_leaves_a_finished_stage(path):
    objective = make_distill()
    evaluate, calls = objective.evaluate, []

    def stopped(batch):
        calls.append(1)
        if len(calls) == 6:  # the second and last batch of the last evaluation
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(batch)

    objective.evaluate = stopped
    with pytest.raises(Interrupted):
        run_distill(path, objective=objective)
    assert read_checkpoint(path)["finished"]


def test_a_finished_stage_is_loaded_and_not_trained_again(path):
    first = run_distill(path)
    stamp = path.stat().st_mtime_ns
    events = []
    result, objective = run_distill(path, resume=True, emit=events.append)
    assert result == first[0] and digest(objective.trained) == digest(first[1].trained)
    assert path.stat().st_mtime_ns == stamp
    assert [type(event) for event in events] == [StageStarted, StageFinished]


def test_without_resume_a_checkpoint_is_not_read(path):
    first = run_distill(path)
    second = run_distill(path)
    assert second[0].history[0]["losses"] == first[0].history[0]["losses"]


def test_a_checkpoint_of_other_settings_is_refused_and_the_settings_are_named(path):
    run_distill(path, epochs=1)
    with pytest.raises(TrainingError) as caught:
        run_distill(path, epochs=1, optim=OptimRecipe(lr=0.02), resume=True)
    assert caught.value.code == "checkpoint-settings-mismatch"
    assert caught.value.facts["stored"] == {"lr": 0.01}
    assert caught.value.facts["now"] == {"lr": 0.02}


def test_a_checkpoint_of_another_network_is_refused(path):
    run_distill(path, epochs=1)
    other = make_distill()
    other.trained = make_net(6, seed=2)
    with pytest.raises(TrainingError) as caught:
        run_distill(path, objective=other, epochs=1, resume=True)
    assert caught.value.code == "checkpoint-network-mismatch"


def test_a_nan_loss_stops_naming_epoch_and_step_and_keeps_the_last_checkpoint(path):
    objective = make_distill()
    losses, count = objective.losses, iter(range(1, 100))

    def broken(batch, progress):
        factor = float("nan") if next(count) == 9 else 1.0
        parts = losses(batch, progress)
        return parts | {"loss": parts["loss"] * factor}

    objective.losses = broken
    with pytest.raises(TrainingError) as caught:
        run_distill(path, objective=objective)
    assert caught.value.code == "loss-not-finite"
    assert caught.value.facts == {"stage": "stage2", "epoch": 2, "step": 3}
    assert "--lr" in caught.value.advice
    checkpoint = read_checkpoint(path)
    assert checkpoint["position"]["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in checkpoint["trained"].values())


def test_weights_that_are_not_finite_are_never_saved(path):
    objective = make_distill()
    losses, count = objective.losses, iter(range(1, 100))

    def exploding(batch, progress):
        parts = losses(batch, progress)
        if next(count) == 6:  # finite loss, infinite gradient, in the last step of the epoch
            weight = objective.trained.upper[2].weight
            parts["loss"] = parts["loss"] + (weight - weight.detach()).abs().sqrt().sum()
        return parts

    objective.losses = exploding
    with pytest.raises(TrainingError) as caught:
        run_distill(path, objective=objective, optim=OptimRecipe(grad_clip=None))
    assert caught.value.code == "weight-not-finite"
    assert caught.value.facts["num_steps"] == 6
    assert not path.exists()


def test_a_full_disk_names_the_file_and_keeps_the_previous_checkpoint(path, monkeypatch):
    run_distill(path, epochs=3, objective=None)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(TrainingError) as caught:
        run_distill(path)
    assert caught.value.code == "checkpoint-not-written"
    assert caught.value.facts["path"] == str(path)
    assert "No space left on device" in caught.value.message
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["stage.pt"]


def _no_space(number):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_events_follow_the_course_of_a_stage(path):
    events = []
    result, _ = run_distill(path, epochs=2, emit=events.append)
    events = [event for event in events if not isinstance(event, Progress)]
    assert [type(e) for e in events] == [StageStarted, EpochFinished, EpochFinished, StageFinished]
    assert events[0] == StageStarted(stage="stage2", num_epochs=2, num_steps_per_epoch=6)
    assert [event.epoch for event in events[1:3]] == [1, 2]
    assert set(events[2].losses) == {"loss", "kd", "ce", "lambda_kd", "lr"}
    assert set(events[2].held_out) == {"loss", "top1", "agreement"}
    assert events[2].losses == result.losses and events[3].num_images == result.num_images == 96
    assert events[2].losses["lambda_kd"] == pytest.approx(4 - 3 * 8.5 / 11)  # steps 6..11 of 0..11


def test_progress_is_reported_a_few_times_a_second_at_most(path, monkeypatch):
    clock = iter(n / 10 for n in range(10**6))  # each look at the clock takes a tenth of a second
    monkeypatch.setattr("fitcompress.training.progress_reporter.monotonic", lambda: next(clock))
    events = []
    run_distill(path, epochs=1, emit=events.append)
    reports = [event for event in events if isinstance(event, Progress)]
    assert [report.step for report in reports] == [3, 6]  # 0.3 s between, never less than 0.25
    assert reports[0].images_per_s == pytest.approx(8 * 3 / 0.3)
    assert reports[0].seconds_left == pytest.approx(0.3)


def test_modes_and_random_state_of_the_caller_are_restored(path):
    objective = make_distill()
    objective.trained.middle.eval()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    run_distill(path, objective=objective, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert not objective.trained.middle[1].training and objective.trained.lower[1].training


def test_no_epochs_change_nothing(path):
    result, objective = run_distill(path, epochs=0)
    assert digest(objective.trained) == digest(make_net(4, seed=2))
    assert result.history == () and result.num_images == 0


def test_a_batch_larger_than_the_data_is_capped(path):
    result, _ = run_distill(path, data=(make_views(5), None), batch_size=64, epochs=1)
    assert result.num_images == 5


def test_no_training_images_are_an_error(path):
    with pytest.raises(DataError) as caught:
        run_distill(path, data=(make_views(0), None))
    assert caught.value.code == "training-images-missing"


def test_held_out_images_are_optional(path):
    result, _ = run_distill(path, data=(make_views(), None), epochs=1)
    assert result.held_out == {}


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop", "lamb", "muon"])
def test_other_optimizers_resume_to_the_same_bits(path, optimizer):
    optim = OptimRecipe(optimizer=optimizer, lr=0.001)
    unbroken = run_distill(path, optim=optim)
    path.unlink()
    with pytest.raises(Interrupted):
        run_distill(path, optim=optim, objective=_stop_after(8))
    result, objective = run_distill(path, optim=optim, resume=True)
    assert summary(result, objective.trained) == summary(unbroken[0], unbroken[1].trained)


def test_bf16_on_the_cpu_trains(path):
    result, objective = run_distill(path, precision="bf16", epochs=1)
    assert torch.isfinite(torch.tensor(result.losses["loss"]))
    assert all(p.dtype == torch.float32 for p in objective.trained.parameters())


def test_precisions_may_differ_between_the_stages_of_one_process(path):
    run_distill(path, precision="bf16", epochs=1)
    _, fp32 = run_distill(path, precision="fp32", epochs=1)
    _, again = run_distill(path, precision="fp32", epochs=1)
    assert digest(fp32.trained) == digest(again.trained)


def test_an_unknown_optimizer_is_refused_with_near_misses(path):
    with pytest.raises(RecipeError) as caught:
        run_distill(path, optim=OptimRecipe(optimizer="adamww"))
    assert caught.value.facts["optimizer"] == "adamww"
    assert "'adamw'" in caught.value.advice


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_on_cuda_learns_and_resumes(path, precision):
    settings = {"device": "cuda", "precision": precision, "epochs": 6}
    with pytest.raises(Interrupted):
        run_distill(path, objective=_stop_after(9), **settings)
    result, objective = run_distill(path, resume=True, **settings)
    assert len(result.history) == 6 and result.losses["ce"] < result.history[0]["losses"]["ce"]
    weight = objective.trained.middle[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
def test_a_nan_loss_on_cuda_names_its_step(path):
    objective = make_distill()
    losses, count = objective.losses, iter(range(1, 100))

    def broken(batch, progress):
        parts = losses(batch, progress)
        return parts | {"loss": parts["loss"] * (float("nan") if next(count) == 3 else 1.0)}

    objective.losses = broken
    with pytest.raises(TrainingError) as caught:
        run_distill(path, objective=objective, device="cuda")
    assert caught.value.facts == {"stage": "stage2", "epoch": 1, "step": 3}


def test_a_network_without_batchnorm_trains_too(path):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    objective = SupervisedObjective(plain, student_preprocess=Preprocess(SPEC))
    result, _ = run_distill(path, objective=objective, epochs=2)
    assert set(result.losses) == {"loss", "lr"}


@pytest.mark.parametrize(
    "seconds, share, is_reported", [(60, 0.3, True), (60, 0.1, False), (1, 0.9, False)]
)
def test_long_waiting_for_images_is_reported(seconds, share, is_reported):
    result = StageResult(
        stage="stage2",
        epochs=1,
        num_images=96,
        seconds=seconds,
        images_per_s=96 / seconds,
        waiting_share=share,
        losses={},
        held_out={},
        history=(),
    )
    *notices, finished = last_events(result, num_workers=2)
    assert finished.seconds == seconds
    assert [notice.code for notice in notices] == ["slow-data-loading"] * is_reported
    assert all(f"{share:.0%}" in notice.message for notice in notices)
