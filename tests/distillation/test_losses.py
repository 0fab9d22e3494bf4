"""Losses against closed forms, naive loops, limits and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fitcompress.distillation.losses import (
    hint_loss,
    kd_loss,
    label_loss,
    lambda_at,
    mixed_shares,
    soft_binary_cross_entropy,
    soft_cross_entropy,
    standardize_logits,
    value_loss,
)

FITNETS = {"tau": 3.0, "tau_squared": False, "label_weight": 1.0}


def _draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def _gradient(function, values):
    leaf = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf), leaf)
    return gradient


def _naive_soft_cross_entropy(student, teacher, tau):
    total = 0.0
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(x / tau) for x in v]
        q = [math.exp(x / tau) for x in z]
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return total / len(student)


def test_hint_loss_sum_is_half_the_squared_norm_averaged_over_the_batch():
    a, b = _draw(3, 4, 5, 2), _draw(3, 4, 5, 2, seed=1)
    naive = sum(0.5 * float(torch.linalg.vector_norm(a[i] - b[i])) ** 2 for i in range(3)) / 3
    assert hint_loss(a, b, reduction="sum").item() == pytest.approx(naive, rel=1e-12)
    assert torch.allclose(_gradient(lambda x: hint_loss(x, b, reduction="sum"), a), (a - b) / 3)


def test_hint_loss_mean_is_the_sum_over_the_number_of_elements():
    a, b = _draw(3, 4, 5), _draw(3, 4, 5, seed=1)
    assert hint_loss(a, b).item() == pytest.approx(
        hint_loss(a, b, reduction="sum").item() / 20, rel=1e-12
    )


def test_hint_loss_is_half_for_a_standardized_hint_predicted_by_its_mean():
    hint = standardize_logits(_draw(6, 50))
    assert hint_loss(torch.zeros_like(hint), hint).item() == pytest.approx(0.5, rel=1e-9)


def test_hint_loss_refuses_shapes_that_would_broadcast():
    with pytest.raises(AssertionError):
        hint_loss(_draw(3, 4), _draw(3, 1))


def test_hint_loss_gives_the_teacher_no_gradient():
    hint = _draw(3, 4).requires_grad_()
    hint_loss(_draw(3, 4, seed=1).requires_grad_(), hint).backward()
    assert hint.grad is None


def test_soft_cross_entropy_equals_a_naive_loop():
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    loss = soft_cross_entropy(z, v, tau=3.0).item()
    assert loss == pytest.approx(_naive_soft_cross_entropy(z, v, 3.0), rel=1e-12)


def test_soft_cross_entropy_gradient_is_hintons_closed_form():
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    expected = (F.softmax(z / 3, 1) - F.softmax(v / 3, 1)) / 3 / 5
    assert torch.allclose(
        _gradient(lambda x: soft_cross_entropy(x, v, tau=3.0), z), expected, rtol=1e-10
    )


def test_tau_1_with_a_certain_teacher_is_cross_entropy_in_value_and_gradient():
    z, labels = _draw(5, 7), torch.tensor([0, 3, 6, 2, 2])
    v = F.one_hot(labels, 7).double() * 1e4
    ours, theirs = (
        (lambda x: soft_cross_entropy(x, v, tau=1.0)),
        (lambda x: F.cross_entropy(x, labels)),
    )
    assert ours(z).item() == pytest.approx(theirs(z).item(), rel=1e-12)
    assert torch.allclose(_gradient(ours, z), _gradient(theirs, z), rtol=1e-10)


def test_soft_cross_entropy_minus_the_teachers_entropy_is_torchs_kl_divergence():
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    kl = F.kl_div(
        F.log_softmax(z / 2, 1), F.log_softmax(v / 2, 1), log_target=True, reduction="batchmean"
    )
    ours = soft_cross_entropy(z, v, tau=2.0) - soft_cross_entropy(v, v, tau=2.0)
    assert ours.item() == pytest.approx(kl.item(), rel=1e-10)


def test_high_temperature_limit_is_matching_centered_logits_in_value_and_gradient():
    z, v = _draw(4, 6), _draw(4, 6, seed=1)
    z, v, tau = z - z.mean(1, keepdim=True), v - v.mean(1, keepdim=True), 1e4
    excess = (soft_cross_entropy(z, v, tau=tau) - soft_cross_entropy(v, v, tau=tau)) * tau**2
    assert excess.item() == pytest.approx(
        (0.5 * (z - v).square().sum(1) / 6).mean().item(), rel=1e-3
    )
    gradient = _gradient(lambda x: soft_cross_entropy(x, v, tau=tau), z) * tau**2
    assert torch.allclose(gradient, (z - v) / 6 / 4, rtol=1e-3, atol=1e-6)  # first order in 1/tau


def test_the_students_own_temperature_is_used_on_its_side_only():
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    expected = -(F.softmax(v / 3, 1) * F.log_softmax(z, 1)).sum(1).mean()
    assert soft_cross_entropy(z, v, tau=3.0, student_tau=1.0).item() == pytest.approx(
        expected.item(), rel=1e-12
    )


@pytest.mark.parametrize(
    "loss", [soft_cross_entropy, soft_binary_cross_entropy], ids=["classes", "labels"]
)
def test_dense_outputs_give_the_mean_over_positions(loss):
    z, v = _draw(2, 5, 3, 4), _draw(2, 5, 3, 4, seed=1)
    flat = [x.movedim(1, -1).reshape(-1, 5) for x in (z, v)]
    assert loss(z, v, tau=2.0).item() == pytest.approx(loss(*flat, tau=2.0).item(), rel=1e-12)


def test_soft_binary_cross_entropy_is_the_two_class_case_of_the_soft_cross_entropy():
    z, v = _draw(5, 3), _draw(5, 3, seed=1)
    pair = [torch.stack([x.flatten(), torch.zeros(15)], 1) for x in (z, v)]
    expected = soft_cross_entropy(*pair, tau=2.0).item()
    assert soft_binary_cross_entropy(z, v, tau=2.0).item() == pytest.approx(expected, rel=1e-12)


def test_half_precision_logits_are_softened_in_float32():
    z, v = _draw(4, 1000).float(), _draw(4, 1000, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = soft_cross_entropy(z.bfloat16(), v.bfloat16(), tau=4.0)
    assert loss.dtype == torch.float32
    expected = soft_cross_entropy(z.bfloat16().double(), v.bfloat16().double(), tau=4.0).item()
    assert loss.item() == pytest.approx(expected, rel=1e-6)  # float32 sums over 1000 classes


def test_fitnets_loss_is_label_plus_lambda_times_soft_cross_entropy_without_tau_squared():
    z, v, y = _draw(5, 7), _draw(5, 7, seed=1), torch.tensor([0, 1, 2, 3, 4])
    losses = kd_loss(z, v, y, lambda_kd=4.0, **FITNETS)
    expected = F.cross_entropy(z, y) + 4.0 * _naive_soft_cross_entropy(z, v, 3.0)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert set(losses) == {"loss", "kd", "ce"}


def test_hintons_loss_multiplies_the_soft_term_by_tau_squared():
    z, v, y = _draw(5, 7), _draw(5, 7, seed=1), torch.tensor([0, 1, 2, 3, 4])
    losses = kd_loss(z, v, y, tau=4.0, tau_squared=True, label_weight=0.1, lambda_kd=0.9)
    expected = 0.1 * F.cross_entropy(z, y) + 0.9 * 16 * _naive_soft_cross_entropy(z, v, 4.0)
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-12)


def test_lambda_0_is_plain_cross_entropy_in_value_and_gradient():
    z, v, y = _draw(5, 7), _draw(5, 7, seed=1), torch.tensor([0, 1, 2, 3, 4])
    ours, theirs = (
        (lambda x: kd_loss(x, v, y, lambda_kd=0.0, **FITNETS)["loss"]),
        (lambda x: F.cross_entropy(x, y)),
    )
    assert ours(z).item() == pytest.approx(theirs(z).item(), rel=1e-12)
    assert torch.allclose(_gradient(ours, z), _gradient(theirs, z), rtol=1e-10)


@pytest.mark.parametrize("labels", [None, torch.full((5,), -1)], ids=["none", "all minus one"])
def test_without_labels_only_the_soft_term_remains(labels):
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    losses = kd_loss(z, v, labels, lambda_kd=2.0, **FITNETS)
    assert losses["loss"].item() == pytest.approx(
        2.0 * _naive_soft_cross_entropy(z, v, 3.0), rel=1e-12
    )


def test_label_loss_averages_over_the_labeled_samples_only():
    z = _draw(4, 3)
    assert label_loss(z, torch.tensor([1, -1, 2, -1])).item() == pytest.approx(
        F.cross_entropy(z[[0, 2]], torch.tensor([1, 2])).item(), rel=1e-12
    )


def test_label_loss_of_unlabeled_samples_is_0_with_a_zero_gradient():
    gradient = _gradient(lambda x: label_loss(x, torch.full((4,), -1)), _draw(4, 3))
    assert torch.equal(gradient, torch.zeros(4, 3, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 5)], ids=["plain", "dense"])
def test_label_loss_equals_torchs_cross_entropy_with_smoothing(shape):
    z, y = (
        _draw(*shape),
        torch.randint(3, (shape[0], *shape[2:]), generator=torch.Generator().manual_seed(3)),
    )
    expected = F.cross_entropy(z, y, label_smoothing=0.1).item()
    assert label_loss(z, y, smoothing=0.1).item() == pytest.approx(expected, rel=1e-10)


def test_label_loss_of_mixed_labels_is_the_mix_of_the_label_losses():
    z, a, b = _draw(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    mixed = 0.3 * F.one_hot(a, 3).double() + 0.7 * F.one_hot(b, 3).double()
    expected = 0.3 * F.cross_entropy(z, a) + 0.7 * F.cross_entropy(z, b)
    assert label_loss(z, mixed).item() == pytest.approx(expected.item(), rel=1e-12)


def test_mixed_shares_are_the_weights_of_the_two_labels_and_0_for_a_missing_one():
    shares = mixed_shares(
        torch.tensor([0, 2, -1]), torch.tensor([1, 2, -1]), torch.tensor([0.25, 0.5, 0.5]), 3
    )
    assert shares.tolist() == [[0.25, 0.75, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]


def test_label_loss_of_independent_labels_is_binary_cross_entropy():
    z, y = _draw(4, 3), torch.tensor([0, 1, 2, 0])
    expected = F.binary_cross_entropy_with_logits(z, F.one_hot(y, 3).double()).item()
    assert label_loss(z, y, kind="labels").item() == pytest.approx(expected, rel=1e-12)


def test_standardized_logits_have_mean_0_deviation_1_and_ignore_scale_and_shift():
    z = standardize_logits(_draw(5, 7, 2))
    assert torch.allclose(z.mean(1), torch.zeros(5, 2, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(z.std(1, correction=0), torch.ones(5, 2, dtype=torch.float64), rtol=1e-9)
    assert torch.allclose(z, standardize_logits(_draw(5, 7, 2) * 3 + 2), rtol=1e-9)


def test_standardized_equal_logits_have_a_finite_gradient():
    gradient = _gradient(
        lambda x: standardize_logits(x).sum(), torch.ones(2, 4, dtype=torch.float64)
    )
    assert torch.isfinite(gradient).all()


def test_standardized_kd_does_not_change_when_the_teacher_is_scaled():
    z, v = _draw(5, 7), _draw(5, 7, seed=1)
    first, second = (
        kd_loss(z, s * v, None, lambda_kd=1.0, standardize=True, **FITNETS)["kd"] for s in (1, 5)
    )
    assert first.item() == pytest.approx(second.item(), rel=1e-9)


def test_value_loss_is_the_mean_squared_error():
    a, b = _draw(3, 4), _draw(3, 4, seed=1)
    assert value_loss(a, b).item() == pytest.approx(F.mse_loss(a, b).item(), rel=1e-12)


def test_lambda_is_annealed_linearly():
    assert [lambda_at(p, 4.0, 1.0) for p in (0.0, 1 / 3, 1.0)] == [4.0, 3.0, 1.0]
    assert lambda_at(0.7, 0.9, None) == 0.9


LABELS = torch.tensor([0, -1, 2])
GRADCHECKED = {
    "hint sum": lambda x, v: hint_loss(x, v, reduction="sum"),
    "hint mean": lambda x, v: hint_loss(x, v),
    "soft": lambda x, v: soft_cross_entropy(x, v, tau=3.0),
    "soft own tau": lambda x, v: soft_cross_entropy(x, v, tau=3.0, student_tau=1.0),
    "soft binary": lambda x, v: soft_binary_cross_entropy(x, v, tau=2.0),
    "kd": lambda x, v: kd_loss(x, v, LABELS, lambda_kd=0.7, smoothing=0.1, **FITNETS)["loss"],
    "kd standardized": lambda x, v: kd_loss(
        x, v, LABELS, lambda_kd=0.7, standardize=True, **FITNETS
    )["loss"],
    "kd labels": lambda x, v: kd_loss(x, v, LABELS, kind="labels", lambda_kd=0.7, **FITNETS)[
        "loss"
    ],
    "values": value_loss,
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_gradient_equals_finite_differences(name):
    teacher = _draw(3, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda x: GRADCHECKED[name](x, teacher), _draw(3, 4).requires_grad_()
    )
