"""`results.json`: what a run measured on its evaluation split."""

from __future__ import annotations

from dataclasses import dataclass, field

from fitcompress.records.json_record import Record
from fitcompress.records.measurements import (
    Agreement,
    Calibration,
    ClassAccuracy,
    Disagreement,
    Doubt,
    NetworkCosts,
    PairedTest,
    Share,
    Timing,
)

__all__ = [
    "DataFacts",
    "EpochRecord",
    "HeadlineFacts",
    "ModelResult",
    "RunResults",
    "StageRecord",
]


@dataclass(frozen=True, kw_only=True)
class ModelResult(NetworkCosts):
    """What was measured of one network."""

    size_bytes: int | None
    """Of its weights as float32."""
    peak_memory_bytes: dict[str, int] | None = None
    """By batch size."""
    latency_ms: dict[str, dict[str, Timing]] | None = None
    """By runtime ("torch", "onnxruntime") and batch size."""
    accuracy: Share | None
    calibration: Calibration | None
    weights_from: str | None = None
    """Only of the teacher: the origin of its weights ("random", "pretrained", ...)."""
    adapted: bool | None = None
    """Only of the teacher: whether it was fine-tuned on the data first."""
    agreement: Agreement | None = None
    """Only of a report's student: its agreement with the teacher."""

    @property
    def timings(self) -> dict[str, dict[str, Timing]]:
        """Latencies by runtime and batch size; empty if none was measured."""
        return self.latency_ms or {}


@dataclass(frozen=True, kw_only=True)
class EpochRecord(Record):
    """The means of one epoch."""

    epoch: int
    """Counted from 1."""
    losses: dict[str, float]
    held_out: dict[str, float]
    seconds: float
    images_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class StageRecord(Record):
    """What a stage cost and where it ended."""

    stage: str
    epochs: int | None = None
    num_images: int | None
    """Over all epochs, repeats counted."""
    seconds: float | None
    """Time of the training steps."""
    images_per_s: float | None
    is_finished: bool | None = None
    """Only in reports."""
    waiting_share: float | None = None
    """Share of the time spent waiting for images."""
    losses: dict[str, float] | None = None
    """Means over the last epoch."""
    held_out: dict[str, float] | None = None
    history: tuple[EpochRecord, ...] | None = None
    flops_per_image: int | None = None
    """Floating-point operations of one image in a training step."""


@dataclass(frozen=True, kw_only=True)
class DataFacts(Record):
    """The images of a run."""

    description: str | None = None
    evaluation_split: str | None = None
    num_train: int | None = None
    num_held_out: int | None = None
    num_evaluation: int | None = None
    evaluation_digest: str | None = None
    """A hash of the evaluation split."""


@dataclass(frozen=True, kw_only=True)
class HeadlineFacts(Record):
    """What the headline says of teacher and data."""

    teacher_weights: str | None = None
    adapted: bool | None = None
    """Whether the teacher was fine-tuned on the data first."""
    evaluation_split: str | None = None


@dataclass(frozen=True, kw_only=True)
class RunResults(Record):
    """All results of a run; empty (`student` is None) while the run is unfinished."""

    teacher: ModelResult | None = None
    student: ModelResult | None = None
    baseline: ModelResult | None = None
    """The same student trained without a teacher."""
    agreement: Agreement | None
    tests: dict[str, PairedTest | None] = field(default_factory=dict)
    """"teacher_student" and "student_baseline"; None without labels."""
    classes: tuple[ClassAccuracy, ...] | None = None
    disagreements: tuple[Disagreement, ...] | None = None
    doubts: tuple[Doubt, ...] | None = None
    stages: tuple[StageRecord, ...] = ()
    data: DataFacts | None = None
    headline_facts: HeadlineFacts = HeadlineFacts()

    def model(self, name: str) -> ModelResult | None:
        """The results of "teacher", "student" or "baseline"."""
        return {"teacher": self.teacher, "student": self.student, "baseline": self.baseline}[name]
