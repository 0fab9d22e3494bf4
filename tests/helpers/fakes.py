"""What stands for the package where the command line is tested alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace


class FakeReport:
    """Stands for a report: says in which form it was asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.html_path = path / "report.html"
        self.failed: dict[tuple[str, int], str] = {}

    def render(self, form: str) -> str:
        return json.dumps({"form": form}) if form == "json" else f"the report as {form}\n"

    def __rich__(self) -> str:
        return "the report on a terminal"


class FakeFunctions(SimpleNamespace):
    """Stands for the public functions of the package: records each call, after a look at whether
    the real function takes its arguments, and answers with `answers`; raises an answer that is an
    exception.
    """

    def __init__(self, answers: dict[str, object]) -> None:
        super().__init__(calls=[], answers=answers, events=[], prints="")

    def standing_for(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        """A function that can be called as `real`, under its public name."""

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


def canned_answers(folder: Path) -> dict[str, object]:
    """An answer for every function that a command calls."""
    return {
        "distill": FakeReport(folder / "runs/x"),
        "ablate": FakeReport(folder / "runs/x"),
        "demo": FakeReport(folder / "runs/demo-1"),
        "load_report": FakeReport(folder / "runs/x"),
        "load_comparison": FakeReport(folder / "runs/x"),
        "plan": {
            "teacher": {"params": 11_200_000, "macs": 1.8e9, "flops": 3.6e9, "depth": 18},
            "student": {"params": 2_100_000, "macs": 3.5e8, "flops": 7e8, "depth": 36},
            "stages": [],
            "pairs": [],
            "learns_hints": True,
            "frozen": [],
            "notices": [],
        },
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
        "inspect": [
            {
                "name": "layer1",
                "kind": "Sequential",
                "shape": [64, 56, 56],
                "depth_share": 0.25,
                "candidate": True,
            }
        ],
        "train_teacher": Path("teachers/resnet18-1"),
        "evaluate": {"accuracy": {"top1": 0.75, "low": 0.7, "high": 0.8, "n": 400}},
        "export": [
            {
                "format": "onnx",
                "path": "runs/x/exports/student.onnx",
                "size_bytes": 1_500_000,
                "max_abs_diff": 2.4e-7,
                "top1_agreement": 1.0,
            }
        ],
    }
