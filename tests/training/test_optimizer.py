"""timm's optimizers: weight decay, momentum and learning rates."""

from __future__ import annotations

import pytest
from helpers.toy_training import make_net

from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.optimizer import build_optimizer, set_learning_rate


def test_biases_and_norms_get_no_weight_decay():
    net = make_net(4, seed=0)
    optimizer = build_optimizer(net, OptimRecipe(weight_decay=0.1))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {id(p) for p in net.parameters() if p.dim() > 1}


def test_parameters_without_gradients_are_left_out():
    net = make_net(4, seed=0)
    net.lower.requires_grad_(False)
    optimizer = build_optimizer(net, OptimRecipe())
    num = sum(len(group["params"]) for group in optimizer.param_groups)
    assert num == sum(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name, momentum", [("rmsprop", 0.0), ("sgd", 0.9)])
def test_rmsprop_is_plain_as_in_the_paper(name, momentum):
    optimizer = build_optimizer(make_net(4, seed=0), OptimRecipe(optimizer=name))
    assert all(group["momentum"] == momentum for group in optimizer.param_groups)


def test_the_rate_of_a_step_reaches_every_group():
    optim = OptimRecipe(lr=1.0, warmup_epochs=0.5)
    optimizer = build_optimizer(make_net(4, seed=0), optim)
    optimizer.param_groups[0]["lr_scale"] = 0.5
    rate = set_learning_rate(optimizer, optim, step=1, num_steps=80, steps_per_epoch=8)
    assert rate == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.5]
