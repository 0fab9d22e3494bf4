"""The objectives of the stages, against direct computation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers.toy_training import NUM_CLASSES, SPEC, Lower, make_distill, make_net, make_views
from torch import nn

from fitcompress.data.loader import make_loader
from fitcompress.data.preprocess import Preprocess
from fitcompress.data.views import Batch
from fitcompress.distillation.hint_objectives import HintMatcher, HintObjective
from fitcompress.distillation.losses import hint_loss, value_loss
from fitcompress.distillation.objectives import DistillObjective, SupervisedObjective
from fitcompress.distillation.regressors import make_regressor
from fitcompress.distillation.statistics import estimate_hint_statistics
from fitcompress.recipe.schema import Stage2Recipe

PREPROCESS = {"teacher_preprocess": Preprocess(SPEC), "student_preprocess": Preprocess(SPEC)}


def _batch(**arguments):
    return next(iter(make_loader(make_views(12, **arguments), 12)))


class Both(nn.Module):
    """A network with two tapped values."""

    def __init__(self, net):
        super().__init__()
        self.lower, self.middle = net.lower, net.middle

    def forward(self, x_NCHW):
        low = self.lower(x_NCHW)
        return low, self.middle(low)


class Heads(nn.Module):
    """A network with several outputs: classes, plain values, a dense map of classes."""

    def __init__(self, seed, kinds=3):
        super().__init__()
        self.body, self.kinds = make_net(4, seed=seed), kinds
        self.dense = nn.Conv2d(1, 5, 1)

    def forward(self, x_NCHW):
        logits = self.body(x_NCHW)
        return (logits, logits.tanh() * 3, self.dense(x_NCHW))[: self.kinds]


def _regressors(*shapes):
    return [
        make_regressor(hint, guided, non_negative_hint=False, when_equal=True)[0]
        for hint, guided in shapes
    ]


def test_the_hint_loss_compares_the_regressed_guided_map_with_the_hint():
    teacher, student = make_net(8, seed=1).eval(), make_net(4, seed=2)
    (regressor,) = _regressors(((8, 3, 3), (4, 3, 3)))
    cuts = Lower(teacher), Lower(student)
    objective = HintObjective(
        *cuts, HintMatcher([regressor], reduction="sum"), **PREPROCESS
    ).train()
    batch = _batch()
    losses = objective.losses(batch, 0.0)
    x_NCHW = Preprocess(SPEC)(batch.images)
    regressed = regressor(student.middle(student.lower(x_NCHW)))
    expected = hint_loss(regressed, teacher.middle(teacher.lower(x_NCHW)), reduction="sum")
    assert set(losses) == {"loss"}
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_several_pairs_are_added_and_named():
    teacher, student = Both(make_net(8, seed=1)), Both(make_net(4, seed=2))
    regressors = _regressors(((8, 8, 8), (4, 8, 8)), ((8, 3, 3), (4, 3, 3)))
    losses = HintObjective(teacher, student, HintMatcher(regressors), **PREPROCESS).losses(
        _batch(), 0.0
    )
    assert set(losses) == {"loss", "hint_1", "hint_2"}
    assert losses["loss"].item() == pytest.approx((losses["hint_1"] + losses["hint_2"]).item())


def test_standardized_hints_start_near_one_half_when_the_regressor_is_uninformative():
    teacher, student = Lower(make_net(8, seed=1)).eval(), Lower(make_net(4, seed=2))
    regressors = _regressors(((8, 3, 3), (4, 3, 3)))
    nn.init.zeros_(regressors[0].project.weight)
    nn.init.zeros_(regressors[0].project.bias)
    batch = _batch()
    with torch.no_grad():
        hints = [teacher(Preprocess(SPEC)(batch.images))]
    statistics = estimate_hint_statistics(hints, channel_axes=[1])
    objective = HintObjective(teacher, student, HintMatcher(regressors, statistics), **PREPROCESS)
    assert objective.losses(batch, 0.0)["loss"].item() == pytest.approx(0.5, abs=1e-4)
    assert any(name.startswith("matcher.statistics") for name in objective.trained.state_dict())


def test_the_hint_objective_needs_no_labels():
    objective = HintObjective(
        Lower(make_net(8, seed=1)),
        Lower(make_net(4, seed=2)),
        HintMatcher(_regressors(((8, 3, 3), (4, 3, 3)))),
        **PREPROCESS,
    )
    torch.manual_seed(0)
    first = objective.losses(_batch(), 0.0)["loss"]
    second = objective.losses(_batch(labeled=False), 0.0)["loss"]
    assert torch.equal(first, second)


@pytest.mark.parametrize("make", [make_distill], ids=["distill"])
def test_the_teacher_stays_in_eval_mode(make):
    objective = make()
    objective.train()
    assert not any(part.training for part in objective.teacher.modules())
    assert all(part.training for part in objective.trained.modules())


def test_no_gradient_reaches_the_teacher():
    objective = make_distill().train()
    objective.losses(_batch(), 0.5)["loss"].backward()
    assert all(parameter.grad is None for parameter in objective.teacher.parameters())
    assert all(parameter.grad is not None for parameter in objective.trained.parameters())


def test_lambda_is_annealed_over_the_stage():
    objective = make_distill().eval()
    batch = _batch()
    first, last = objective.losses(batch, 0.0), objective.losses(batch, 1.0)
    assert (first["lambda_kd"], last["lambda_kd"]) == (4.0, 1.0)
    assert first["loss"].item() == pytest.approx((first["ce"] + 4 * first["kd"]).item(), rel=1e-6)
    assert last["loss"].item() == pytest.approx((last["ce"] + last["kd"]).item(), rel=1e-6)


def test_unlabeled_data_has_no_label_term_and_no_top1():
    objective = make_distill(is_labeled=False).eval()
    batch = _batch(labeled=False)
    assert set(objective.losses(batch, 0.0)) == {"loss", "kd", "lambda_kd"}
    assert set(objective.evaluate(batch)) == {"loss", "agreement"}


def test_scores_count_correct_samples():
    objective = make_distill().eval()
    batch = _batch(augment="none")
    scores = objective.evaluate(batch)
    x_NCHW = Preprocess(SPEC)(batch.images)
    predicted, teachers = (
        objective.trained(x_NCHW).argmax(1),
        objective.teacher[1](x_NCHW).argmax(1),
    )
    assert scores["top1"][0] == (predicted == batch.labels).sum() and scores["top1"][1] == 12
    assert scores["agreement"][0] == (predicted == teachers).sum()


def test_missing_labels_are_not_counted():
    batch = _batch(augment="none")
    half = Batch(batch.images, torch.where(batch.ids < 5, batch.labels, -1), batch.ids)
    assert make_distill().eval().evaluate(half)["top1"][1] == 5


def test_mixed_labels_reach_the_label_term():
    student = make_net(4, seed=2)
    objective = SupervisedObjective(student, student_preprocess=Preprocess(SPEC)).eval()
    batch = _batch(mixup=0.4)
    logits = student(Preprocess(SPEC)(batch.images))
    own = F.cross_entropy(logits, batch.labels, reduction="none")
    partner = F.cross_entropy(logits, batch.mix_labels, reduction="none")
    expected = (batch.mix_lam * own + (1 - batch.mix_lam) * partner).mean()
    assert batch.mix_lam.std() > 0
    assert objective.losses(batch, 0.0)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_each_output_has_the_loss_of_its_kind():
    kinds = ("classes", "values", "classes")
    teacher, student = Heads(1), Heads(2)
    recipe = Stage2Recipe(tau=2.0)
    objective = DistillObjective(teacher, student, recipe, output_kinds=kinds, **PREPROCESS).eval()
    batch = _batch()
    losses = objective.losses(batch, 0.0)
    assert set(losses) == {"loss", "kd_1", "ce_1", "mse_2", "kd_3", "lambda_kd"}
    x_NCHW = Preprocess(SPEC)(batch.images)
    mse = value_loss(student(x_NCHW)[1], teacher(x_NCHW)[1])
    assert losses["mse_2"].item() == pytest.approx(mse.item(), rel=1e-6)
    parts = 0.1 * losses["ce_1"] + 0.9 * (losses["kd_1"] + losses["kd_3"]) + losses["mse_2"]
    assert losses["loss"].item() == pytest.approx(parts.item(), rel=1e-6)


def test_plain_values_alone_have_no_kd_term():
    nets = (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)) for _ in range(2))
    objective = DistillObjective(*nets, Stage2Recipe(), output_kinds=("values",), **PREPROCESS)
    assert set(objective.losses(_batch(), 0.0)) == {"loss", "mse"}
    assert set(objective.evaluate(_batch())) == {"loss"}


def test_a_dense_output_is_distilled_and_compared_by_position():
    nets = [nn.Conv2d(1, NUM_CLASSES, 1) for _ in range(2)]
    objective = DistillObjective(*nets, Stage2Recipe(), is_labeled=False, **PREPROCESS).eval()
    scores = objective.evaluate(_batch())
    x_NCHW = Preprocess(SPEC)(_batch().images)
    agreed = (nets[0](x_NCHW).argmax(1) == nets[1](x_NCHW).argmax(1)).float().mean()
    assert scores["agreement"][0].item() / 12 == pytest.approx(agreed.item(), rel=1e-5)


def test_independent_labels_use_the_binary_losses():
    objective = make_distill(output_kinds=("labels",)).eval()
    losses = objective.losses(_batch(), 1.0)
    assert losses["loss"].item() == pytest.approx((losses["ce"] + losses["kd"]).item(), rel=1e-6)
    assert set(objective.evaluate(_batch())) == {"loss"}


def test_teacher_and_student_see_the_same_view_each_in_its_own_normalization():
    seen = {}

    class Spy(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.layer = name, nn.Linear(64, 3)

        def forward(self, x_NCHW):
            seen[self.name] = x_NCHW
            return self.layer(x_NCHW.flatten(1))

    other = Preprocess(type(SPEC)(shape=(1, 8, 8), mean=(0.1,), std=(0.5,)))
    objective = DistillObjective(
        Spy("teacher"),
        Spy("student"),
        Stage2Recipe(),
        teacher_preprocess=other,
        student_preprocess=Preprocess(SPEC),
    )
    objective.losses(_batch(), 0.0)
    back = [seen["teacher"] * 0.5 + 0.1, seen["student"] * 0.25 + 0.5]
    assert torch.allclose(back[0], back[1], atol=1e-6)
