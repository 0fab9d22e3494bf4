"""Presets: named sets of changes to the default recipe. Imports the standard library only."""

from __future__ import annotations

from typing import Any

__all__ = ["PRESETS"]

_PAPER_OPTIM = {
    "optimizer": "rmsprop",
    "lr": 0.005,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0.0,
    "grad_clip": None,
}
"""FitNets (arXiv 1412.6550v4), section 3.1 and appendix: both stages of the CIFAR runs."""

PRESETS: dict[str, dict[str, Any]] = {
    "modern": {},  # the defaults, as measured in examples/reproductions, section 6
    # FitNets Eq. 2 and 3: no tau^2, label weight 1, lambda from 4 to 1, raw hints, flips only.
    "fitnets": {
        "student.init": "random",
        "data.batch_size": 128,
        "data.augment": "flip",
        "hints.standardise": False,
        "hints.regressor_when_equal": False,
        "stage2.tau": 3.0,
        "stage2.tau_squared": False,
        "stage2.label_weight": 1.0,
        "stage2.lambda_kd": 4.0,
        "stage2.lambda_kd_end": 1.0,
        **{
            f"{stage}.optim.{name}": value
            for stage in ("stage1", "stage2")
            for name, value in _PAPER_OPTIM.items()
        },
    },
    # Hinton et al. (arXiv 1503.02531), section 2, with the weights of later work; no hints.
    "hinton": {
        "student.init": "random",
        "stage1.epochs": 0,
        "stage2.tau": 4.0,
        "stage2.tau_squared": True,
        "stage2.label_weight": 0.1,
        "stage2.lambda_kd": 0.9,
    },
}
"""Changed settings of each preset, by dotted name."""
