"""The exceptions for what a user can cause. Lowest layer: standard library only.

    FitcompressError       anything below; the command line prints one line and exits with 3
    |-- RecipeError        a setting, a multiplier or a budget that cannot hold
    |-- TeacherError       a teacher that cannot be opened, or does not fit its weights or the data
    |-- CaptureError       a network that cannot be turned into a graph, or not faithfully
    |   `-- ObstacleError  one that cannot whatever it is given: it calls what no graph can hold
    |-- PlanError          no student can be planned as asked
    |-- LayerError         a layer name that is unknown or ambiguous
    |-- DataError          images, folders or data sets that cannot be used
    |-- TrainingError      training that diverged or could not go on
    |-- RunError           a run directory that is missing, unfinished or already taken
    `-- ExportError        an export that failed or does not match the student

A fault of ours is an `assert`, never one of these.
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
    """Something that the user can fix.

    Attributes:
        message: what was being done, on what, what was expected and what came; one line.
        code: a stable slug such as "run-exists", for scripts and tests.
        advice: what to do about it, as sentences; may be empty.
        facts: the values in the message, by name.
    """

    def __init__(self, message: str, *, code: str = "", advice: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.advice = advice
        self.facts = facts

    def reworded(self, message: str, *, advice: str | None = None) -> Self:
        """The same error (type, code and facts) in other words, for adding context to it."""
        advice = self.advice if advice is None else advice
        return type(self)(message, code=self.code, advice=advice, **self.facts)

    def to_dict(self) -> dict[str, Any]:
        """The error for scripts, ready for JSON: `code`, `message`, `advice` and the facts."""
        return {"code": self.code, "message": self.message, "advice": self.advice, **self.facts}


class RecipeError(FitcompressError):
    """A setting, a multiplier or a budget that cannot hold."""


class TeacherError(FitcompressError):
    """A teacher that cannot be opened, or does not fit its weights or the data."""


class CaptureError(FitcompressError):
    """A network that cannot be turned into a graph, or not faithfully."""


class ObstacleError(CaptureError):
    """A network that cannot be turned into a graph whatever it is given: one of its calls stands in
    the way.
    """


class PlanError(FitcompressError):
    """No student can be planned as asked."""


class LayerError(FitcompressError):
    """A layer name that is unknown or ambiguous."""


class DataError(FitcompressError):
    """Images, folders or data sets that cannot be used."""


class TrainingError(FitcompressError):
    """Training that diverged or could not go on."""


class RunError(FitcompressError):
    """A run directory that is missing, unfinished or already taken."""


class ExportError(FitcompressError):
    """An export that failed or does not match the student."""


def near_misses(name: str, known: Iterable[str]) -> str:
    """Up to three names close to `name`, worded for the end of a message, or an empty string.

    >>> near_misses("resnet5", ["resnet50", "vgg11"])
    "did you mean 'resnet50'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
