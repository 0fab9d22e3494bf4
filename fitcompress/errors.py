"""Exceptions for errors that the user can fix.

    FitcompressError       base class; the command line prints it and exits with status 3
    |-- RecipeError        invalid setting, multiplier or budget
    |-- TeacherError       teacher that cannot be opened, or does not match its weights or the data
    |-- CaptureError       network that cannot be captured as a graph
    |   `-- ObstacleError  call in the network that no graph can hold, whatever the inputs
    |-- PlanError          no student satisfies the request
    |-- LayerError         unknown or ambiguous layer name
    |-- DataError          unusable images, folders or data sets
    |-- TrainingError      training that diverged or cannot continue
    |-- RunError           run directory that is missing, unfinished or already in use
    `-- ExportError        export that failed or does not match the student

Bugs in fitcompress fail an `assert` instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, Self

__all__ = [
    "CaptureError",
    "DataError",
    "ExportError",
    "FitcompressError",
    "LayerError",
    "ObstacleError",
    "PlanError",
    "RecipeError",
    "RunError",
    "TeacherError",
    "TrainingError",
    "near_misses",
]


class FitcompressError(Exception):
    """An error that the user can fix.

    Attributes:
        message: the operation, its object, the expected and the actual value, in one line.
        code: a stable slug such as "run-exists", for scripts and tests.
        advice: how to fix it, in sentences; may be empty.
        facts: the values in the message by name, ready for JSON.
    """

    def __init__(self, message: str, *, code: str = "", advice: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
        self.facts = facts

    def reworded(self, message: str, *, advice: str | None = None) -> Self:
        """The same error (type, code and facts) with another message, to add context."""
        advice = self.advice if advice is None else advice
        return type(self)(message, code=self.code, advice=advice, **self.facts)

    def to_dict(self) -> dict[str, Any]:
        """`code`, `message`, `advice` and the facts, ready for JSON."""
        return {"code": self.code, "message": self.message, "advice": self.advice, **self.facts}


class RecipeError(FitcompressError):
    """Invalid setting, multiplier or budget."""


class TeacherError(FitcompressError):
    """Teacher that cannot be opened, or does not match its weights or the data."""


class CaptureError(FitcompressError):
    """Network that cannot be captured as a graph."""


class ObstacleError(CaptureError):
    """Call in the network that no graph can hold, whatever the inputs."""


class PlanError(FitcompressError):
    """No student satisfies the request."""


class LayerError(FitcompressError):
    """Unknown or ambiguous layer name."""


class DataError(FitcompressError):
    """Unusable images, folders or data sets."""


class TrainingError(FitcompressError):
    """Training that diverged or cannot continue."""


class RunError(FitcompressError):
    """Run directory that is missing, unfinished or already in use."""


class ExportError(FitcompressError):
    """Export that failed or does not match the student."""


def near_misses(name: str, known: Iterable[str]) -> str:
    """Advice that suggests up to three known names close to `name`; empty if none is close.

    >>> near_misses("resnet5", ["resnet50", "vgg11"])
    "Did you mean 'resnet50'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
