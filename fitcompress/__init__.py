"""Compresses trained image models by knowledge distillation.

    import fitcompress

    settings = {"teacher.source": "resnet18", "run.out": "runs/r18"}
    recipe = fitcompress.resolve_recipe(settings=settings)
    report = fitcompress.distill(recipe)
    student = fitcompress.load("runs/r18")

Names are imported on first use: importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitcompress.ablation.arms import read_arms
    from fitcompress.ablation.runner import ablate
    from fitcompress.api import (
        demo,
        evaluate,
        export,
        inspect,
        load_comparison,
        load_report,
        plan,
        plan_frontier,
    )
    from fitcompress.errors import FitcompressError
    from fitcompress.interface import InputSpec, TensorSpec
    from fitcompress.models.open import teacher_from_module
    from fitcompress.models.saved import load
    from fitcompress.recipe.recipe import Recipe, load_recipe, resolve_recipe
    from fitcompress.report.ablation_report import Ablation
    from fitcompress.report.comparison import Comparison
    from fitcompress.report.run_report import Report
    from fitcompress.run.distill import distill
    from fitcompress.run.train_teacher import train_teacher

__all__ = [
    "Ablation",
    "Comparison",
    "FitcompressError",
    "InputSpec",
    "Recipe",
    "Report",
    "TensorSpec",
    "__version__",
    "ablate",
    "demo",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load",
    "load_comparison",
    "load_recipe",
    "load_report",
    "plan",
    "plan_frontier",
    "read_arms",
    "resolve_recipe",
    "teacher_from_module",
    "train_teacher",
]

__version__ = "0.2.0"

_HOME = {
    "Ablation": "report.ablation_report",
    "Comparison": "report.comparison",
    "FitcompressError": "errors",
    "InputSpec": "interface",
    "Recipe": "recipe.recipe",
    "Report": "report.run_report",
    "TensorSpec": "interface",
    "ablate": "ablation.runner",
    "demo": "api",
    "distill": "run.distill",
    "evaluate": "api",
    "export": "api",
    "inspect": "api",
    "load": "models.saved",
    "load_comparison": "api",
    "load_recipe": "recipe.recipe",
    "load_report": "api",
    "plan": "api",
    "plan_frontier": "api",
    "read_arms": "ablation.arms",
    "resolve_recipe": "recipe.recipe",
    "teacher_from_module": "models.open",
    "train_teacher": "run.train_teacher",
}
"""The module of each public name."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fitcompress' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fitcompress.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
