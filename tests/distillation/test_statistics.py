"""Statistics of hints and batch norms against direct computation."""

from __future__ import annotations

import pytest
import torch
from helpers.toy_training import SPEC, Lower, digest, make_net, make_views
from torch import nn

from fitcompress.data.loader import make_loader
from fitcompress.data.preprocess import Preprocess
from fitcompress.distillation.regressors import make_regressor
from fitcompress.distillation.statistics import (
    HintStatistics,
    estimate_hint_statistics,
    estimate_target_statistics,
    reestimate_batch_norms,
)
from fitcompress.errors import PlanError


def _estimate(batches, axis=1):
    (statistics,) = estimate_hint_statistics([(b,) for b in batches], channel_axes=[axis])
    return statistics


def test_statistics_are_over_all_batches():
    torch.manual_seed(0)
    batches = [
        torch.randn(5, 3, 4, 4) * torch.tensor([1.0, 20.0, 3.0]).view(3, 1, 1) + 7,
        torch.randn(2, 3, 4, 4),
    ]
    statistics = _estimate(batches)
    values_CM = torch.cat(batches).movedim(1, 0).flatten(1)
    assert torch.allclose(statistics.mean, values_CM.mean(1), rtol=1e-5)  # float32 sums in the test
    assert torch.allclose(statistics.std, values_CM.std(1, correction=0), rtol=1e-5)
    standard = statistics(torch.cat(batches)).movedim(1, 0).flatten(1)
    assert torch.allclose(standard.mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(standard.std(1, correction=0), torch.ones(3), rtol=1e-5)


def test_statistics_of_channels_last_values():
    values = torch.randn(4, 9, 3) * torch.tensor([1.0, 5.0, 9.0])
    statistics = _estimate([values], axis=-1)
    assert torch.allclose(statistics.std, values.flatten(0, 1).std(0, correction=0), rtol=1e-5)


def test_a_dead_channel_is_not_amplified():
    values = torch.randn(64, 2, 3, 3)
    values[:, 1] = 1e-6 * torch.randn(64, 3, 3)
    assert _estimate([values])(values)[:, 1].abs().max() < 1e-3


def test_a_constant_hint_stays_finite():
    statistics = _estimate([torch.ones(4, 3)])
    assert torch.equal(statistics(torch.ones(4, 3)), torch.zeros(4, 3))


@pytest.mark.parametrize("hints", [[], [torch.full((2, 3), float("nan"))]], ids=["none", "nan"])
def test_statistics_need_finite_values(hints):
    with pytest.raises(PlanError) as caught:
        _estimate(hints)
    assert caught.value.code == "hint-not-finite"


def test_statistics_are_buffers():
    statistics = HintStatistics(torch.zeros(3), torch.ones(3), channel_axis=1)
    assert not list(statistics.parameters())
    assert set(statistics.state_dict()) == {"mean", "std"}


def test_each_pair_has_its_own_statistics():
    batches = [(torch.randn(4, 3, 2), torch.randn(4, 5) + 9) for _ in range(2)]
    first, second = estimate_hint_statistics(batches, channel_axes=[1, 1])
    assert first.mean.shape == (3,) and second.mean.shape == (5,)
    assert (second.mean > 7).all()


def test_target_statistics_are_of_the_hints_as_they_enter_the_loss():
    teacher, views = Lower(make_net(8, seed=1)), make_views(24, augment="none")
    shapes = (8, 3, 3), (4, 3, 3)
    regressor, _ = make_regressor(*shapes, non_negative_hint=False, when_equal=True)
    batches = list(make_loader(views, 8))
    before = digest(teacher)
    (statistics,) = estimate_target_statistics(
        teacher, Preprocess(SPEC), [regressor], batches, num_batches=2
    )
    images = torch.cat([batch.images for batch in batches[:2]])
    (hints,) = teacher.eval()(Preprocess(SPEC)(images))
    assert torch.allclose(statistics(hints).mean((0, 2, 3)), torch.zeros(8), atol=1e-5)
    assert digest(teacher) == before


def _with_preprocess(net):
    return nn.Sequential(Preprocess(SPEC), net)


def test_batchnorm_statistics_become_those_of_the_batches():
    net = make_net(4, seed=0)
    loader = list(make_loader(make_views(32, augment="none"), 8))
    count = reestimate_batch_norms(_with_preprocess(net), loader, num_batches=4)
    maps = [
        net.lower[0](Preprocess(SPEC)(batch.images)).transpose(0, 1).flatten(1) for batch in loader
    ]
    assert count == 2
    assert torch.allclose(
        net.lower[1].running_mean, torch.stack([m.mean(1) for m in maps]).mean(0), atol=1e-6
    )
    assert torch.allclose(
        net.lower[1].running_var, torch.stack([m.var(1) for m in maps]).mean(0), rtol=1e-5
    )


def test_reestimation_uses_num_batches_and_restores_modes_and_momenta():
    net = make_net(4, seed=0)
    net.middle.eval()
    net.lower[1].momentum = 0.3
    loader = make_loader(make_views(32), 8)
    reestimate_batch_norms(_with_preprocess(net), loader, num_batches=2)
    assert net.lower[1].num_batches_tracked == 2 and net.lower[1].momentum == 0.3
    assert net.lower[1].training and net.upper[0].training and not net.middle[1].training


def test_reestimation_changes_nothing_but_statistics():
    net = make_net(4, seed=0)
    before = {name: value.clone() for name, value in net.named_parameters()}
    reestimate_batch_norms(_with_preprocess(net), make_loader(make_views(32), 8), num_batches=2)
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters())


@pytest.mark.parametrize(
    "num_batches, num_images", [(0, 32), (3, 0)], ids=["no batches", "no data"]
)
def test_without_batches_the_statistics_do_not_change(num_batches, num_images):
    net = make_net(4, seed=0)
    before = digest(net)
    loader = make_loader(make_views(num_images), 8)
    assert reestimate_batch_norms(_with_preprocess(net), loader, num_batches=num_batches) == 0
    assert digest(net) == before


def test_a_network_without_batchnorms_is_not_modified():
    assert reestimate_batch_norms(nn.Flatten(), make_loader(make_views(8), 8), num_batches=1) == 0
