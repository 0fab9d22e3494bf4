"""fitcompress: a trained image model in, a much smaller one that does the same job out.

    import fitcompress

    settings = {"teacher.source": "resnet18", "run.out": "runs/r18"}
    recipe = fitcompress.resolve_recipe(settings=settings)
    report = fitcompress.distill(recipe)
    student = fitcompress.load("runs/r18")

Names are loaded when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitcompress.ablation.runner import ablate
    from fitcompress.loading_TMP import load
    from fitcompress.ablation.arms import read_arms
    from fitcompress.errors import FitcompressError
    from fitcompress.api import demo, distill, evaluate, export, inspect, load_comparison, load_report, plan, train_teacher
    from fitcompress.recipe.recipe import Recipe, load_recipe, resolve_recipe
    from fitcompress.report.run_report import Report
    from fitcompress.report.ablation_facts import Ablation
    from fitcompress.report.comparison import Comparison
    from fitcompress.interface import InputSpec, TensorSpec
    from fitcompress.models.open import teacher_from_module

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
    "read_arms",
    "resolve_recipe",
    "teacher_from_module",
    "train_teacher",
]

__version__ = "0.1.0"

_HOME = {
    "Ablation": "report.ablation",
    "Comparison": "report.comparison",
    "FitcompressError": "errors",
    "InputSpec": "spec",
    "Recipe": "recipe",
    "Report": "report",
    "TensorSpec": "spec",
    "ablate": "ablation",
    "demo": "pipeline",
    "distill": "pipeline",
    "evaluate": "pipeline",
    "export": "pipeline",
    "inspect": "pipeline",
    "load": "api",
    "load_comparison": "pipeline",
    "load_recipe": "recipe",
    "load_report": "pipeline",
    "plan": "pipeline",
    "read_arms": "arms",
    "resolve_recipe": "recipe",
    "teacher_from_module": "teacher",
    "train_teacher": "pipeline",
}
"""The module that each public name is loaded from, at its first use."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fitcompress' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"fitcompress.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
