"""Optimizers by timm's names. The only file that imports timm's optimizers."""

from __future__ import annotations

import inspect
from typing import Any

import timm.optim
import torch
from torch import nn

from fitcompress.errors import RecipeError, near_misses
from fitcompress.recipe.schema import OptimRecipe
from fitcompress.training.schedule import learning_rate

__all__ = ["build_optimizer", "set_learning_rate"]


def build_optimizer(trained: nn.Module, optim: OptimRecipe) -> torch.optim.Optimizer:
    """An optimizer for the parameters of `trained` that require gradients, fused if torch supports
    it. Biases and norms get no weight decay.

    Raises:
        RecipeError: timm has no optimizer of that name.
    """
    name = optim.optimizer.lower()
    known = [str(known_name) for known_name in timm.optim.list_optimizers()]
    if name not in known:
        raise RecipeError(
            f"building the optimizer: timm has none named {optim.optimizer!r}",
            code="optimizer-unknown",
            advice=near_misses(name, known) or "Common ones are adamw, sgd, rmsprop and lamb.",
            optimizer=optim.optimizer,
        )
    kind = timm.optim.get_optimizer_class(name, bind_defaults=False)
    is_fusable = "fused" in inspect.signature(kind).parameters
    fused: dict[str, Any] = {"fused": True} if is_fusable else {}
    optimizer: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        trained,
        opt=name,
        lr=_peak(optim),
        weight_decay=optim.weight_decay,
        momentum=_momentum(name),
        **fused,
    )
    return optimizer


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    optim: OptimRecipe,
    *,
    step: int,
    num_steps: int,
    steps_per_epoch: int,
) -> float:
    """Sets the learning rate of `step`, counted over the whole stage, in every parameter group, and
    returns it.
    """
    rate = learning_rate(
        step,
        num_steps=num_steps,
        warmup_steps=optim.warmup_epochs * steps_per_epoch,
        peak=_peak(optim),
        schedule=optim.schedule,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)
    return rate


def _peak(optim: OptimRecipe) -> float:
    assert optim.lr is not None, "the learning rate is resolved before training starts"
    return optim.lr


def _momentum(name: str) -> float:
    """timm's own default, but none for RMSProp: FitNets (arXiv 1412.6550v4) uses it plain."""
    return 0.0 if name.startswith("rmsprop") else 0.9
