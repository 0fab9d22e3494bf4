"""Fakes of the public functions, for tests of the command line alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


class FakeReport:
    """Stands for a report: names the form that it is rendered in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.html_path = path / "report.html"
        self.failed: dict[tuple[str, int], str] = {}

    def render(self, form: str) -> str:
        return json.dumps({"form": form}) if form == "json" else f"the report as {form}\n"

    def __rich__(self) -> str:
        return "the report on a terminal"


class FakeFunctions(SimpleNamespace):
    """Stands for the public functions of the package: binds each call to the real signature,
    records it, and returns the entry of `answers`, or raises it if it is an exception.
    """

    def __init__(self, answers: dict[str, object]) -> None:
        super().__init__(calls=[], answers=answers, events=[], prints="")

    def standing_for(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        """A fake of `real` under its public name."""

        def call(*args, **options):
            inspect.signature(real).bind(*args, **options)
            self.calls.append((name, args, options))
            emit = options.get("emit", lambda event: None)
            for event in self.events:
                emit(event)
            print(self.prints, end="")
            answer = self.answers[name]
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return call


PLAN = {
    "teacher": {"params": 11_181_642, "macs": 1_814_073_344, "flops": 3_628_146_688, "depth": 18},
    "student": {"params": 2_134_210, "macs": 352_321_536, "flops": 704_643_072, "depth": 36},
    "stages": [
        {
            "name": "stage 1",
            "teacher": {
                "blocks": 2,
                "width": [64, 56, 56],
                "params": 157_504,
                "first": "layer1.0",
                "last": "layer1.1",
            },
            "student": {
                "blocks": 5,
                "width": [24, 56, 56],
                "params": 39_380,
                "first": "layer1.0",
                "last": "layer1.4",
            },
        },
        {
            "name": "stage 2",
            "teacher": None,
            "student": {"blocks": 1, "width": [10], "params": 250, "first": "fc", "last": "fc"},
        },
    ],
    "pairs": [
        {
            "hint": "layer2",
            "guided": "layer2",
            "hint_shape": [128, 28, 28],
            "guided_shape": [40, 28, 28],
            "regressor": "conv 1x1",
        }
    ],
    "learns_hints": True,
    "frozen": [
        {"reason": "no rule for x", "sizes": [3, 16], "tensors": ["a.weight", "b.weight"]},
        {"reason": "an index", "sizes": [49], "tensors": []},
    ],
    "notices": ["random weights"],
}
"""The result of `fitcompress.plan`."""

LAYERS = [
    {
        "name": "layer1[0]",
        "kind": "BasicBlock",
        "shape": [64, 56, 56],
        "depth_share": 0.25,
        "candidate": True,
    },
    {"name": "pool", "kind": "MaxPool2d", "shape": [64], "depth_share": None, "candidate": False},
]
"""The result of `fitcompress.inspect`."""


def canned_answers(folder: Path) -> dict[str, object]:
    """A typical result of every function that a command calls."""
    return {
        "distill": FakeReport(folder / "runs/x"),
        "ablate": FakeReport(folder / "runs/x"),
        "demo": FakeReport(folder / "runs/demo-1"),
        "load_report": FakeReport(folder / "runs/x"),
        "load_comparison": FakeReport(folder / "runs/x"),
        "plan": PLAN,
        "plan_frontier": [
            {
                "depth_mult": 1.0,
                "width_mult": 0.3,
                "params": 1_000_000,
                "macs": 2.0e8,
                "flops": 4.0e8,
                "depth": 18,
                "latency_ms": 4.2,
            }
        ],
        "inspect": LAYERS,
        "train_teacher": Path("teachers/resnet18-1"),
        "evaluate": {
            "accuracy": {"top1": 0.75, "low": 0.7, "high": 0.8, "n": 400},
            "evaluation_split": "test",
        },
        "export": [
            {
                "format": "onnx",
                "path": "runs/x/exports/student.onnx",
                "size_bytes": 1_500_000,
                "max_abs_diff": 2.4e-7,
                "top1_agreement": 1.0,
            },
            {
                "format": "onnx-int8",
                "path": "runs/x/exports/student.int8.onnx",
                "size_bytes": 400_000,
                "max_abs_diff": 0.3,
                "top1_agreement": 0.98,
                "accuracy": {"top1": 0.5304, "low": 0.5, "high": 0.6, "n": 100},
                "remark": "1 of 9 layers in float",
                "latency": {"1": {"speedup": 1.5, "speedup_range": [1.4, 1.6]}},
            },
        ],
    }
