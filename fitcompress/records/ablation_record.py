"""`ablation.json`: the arms of an ablation, their questions and the state of their runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fitcompress.records.json_record import Record

__all__ = ["AblationRecord", "ArmRecord", "QuestionRecord", "SharedFacts"]


@dataclass(frozen=True, kw_only=True)
class ArmRecord(Record):
    """One way to train the student."""

    name: str
    meaning: str
    settings: dict[str, Any]
    """The settings of the arm by dotted name."""
    is_long: bool = False
    """Whether stage 2 also takes the epochs of stage 1."""
    sets: tuple[str, ...] = ()
    """Settings of a custom arm as the user wrote them."""
    against: str = "ht"
    """The arm that a custom arm is compared with."""
    changes: dict[str, Any]
    """The settings that differ from the ablation's recipe, by dotted name."""


@dataclass(frozen=True, kw_only=True)
class QuestionRecord(Record):
    """Whether `arm` is better than `against`, fixed before any run."""

    arm: str
    against: str
    subject: str
    """What would have helped."""


@dataclass(frozen=True, kw_only=True)
class SharedFacts(Record):
    """What all runs of an ablation share."""

    teacher: str
    """The teacher's fingerprint."""
    images: str
    """A hash of the evaluation split."""
    settings: dict[str, Any]
    """Settings that a single run would choose or measure itself, by dotted name."""
    seconds: float
    """Estimated time of one run with a teacher."""


@dataclass(frozen=True, kw_only=True)
class AblationRecord(Record):
    """An ablation, finished or not."""

    teacher: str
    """The teacher's name."""
    arms: tuple[ArmRecord, ...]
    cells: tuple[tuple[str, int], ...]
    """The requested runs: arm and seed."""
    questions: tuple[QuestionRecord, ...]
    is_extended: bool = False
    """Whether arms or seeds were added later."""
    shared: SharedFacts
    failed: tuple[tuple[str, int, str], ...] | None = None
    """Runs that failed last time: arm, seed and the error's message."""
