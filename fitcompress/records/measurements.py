"""What is measured of a network: accuracy, calibration, errors, latency, and tests of two."""

from __future__ import annotations

from dataclasses import dataclass

from fitcompress.records.json_record import Record

__all__ = [
    "Agreement",
    "Calibration",
    "CalibrationBin",
    "ClassAccuracy",
    "Disagreement",
    "Doubt",
    "MeanInterval",
    "NetworkCosts",
    "PairedTTest",
    "PairedTest",
    "Share",
    "Timing",
]


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """A share of `n` images, such as an accuracy, with the bounds of its 95 % interval (0..1)."""

    top1: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Agreement(Share):
    """The share of images for which student and teacher predict the same class."""

    kl: float
    """Mean KL(teacher || student) in nats."""


@dataclass(frozen=True, kw_only=True)
class PairedTest(Record):
    """McNemar's exact test of two networks on the same `n` images."""

    difference: float
    """Accuracy of the second minus that of the first; `low` and `high` bound its 95 % interval."""
    low: float
    high: float
    p_value: float
    only_first: int
    """Images that only the first network classifies correctly."""
    only_second: int
    n: int
    p_holm: float | None = None
    """The p-value after Holm's correction, where it is one of several tests."""


@dataclass(frozen=True, kw_only=True)
class MeanInterval(Record):
    """The mean of `n` values, their standard deviation and the mean's 95 % interval; a single
    value has only a mean.
    """

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class PairedTTest(MeanInterval):
    """Student's t-test of paired differences against a mean of 0."""

    p_value: float | None
    """None if the differences have no spread."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBin(Record):
    """The images whose confidence is above `low` and at most `high`."""

    low: float
    high: float
    confidence: float
    """Their mean confidence."""
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class Calibration(Record):
    """How far confidence is from accuracy."""

    ece: float
    """Expected calibration error."""
    n: int
    bins: tuple[CalibrationBin, ...]
    """Without the empty ones."""


@dataclass(frozen=True, kw_only=True)
class ClassAccuracy(Record):
    """The accuracy of each network on the images of one class."""

    name: str
    teacher: Share
    student: Share
    baseline: Share | None = None


@dataclass(frozen=True, kw_only=True)
class Disagreement(Record):
    """A pair of classes that teacher and student predict for the same `n` images."""

    teacher: str
    student: str
    n: int
    teacher_right: int | None
    """Images whose label is the teacher's class; None without labels."""
    student_right: int | None


@dataclass(frozen=True, kw_only=True)
class Doubt(Record):
    """An image for which student and teacher predict very different probabilities."""

    id: int
    """Its index in the evaluation split."""
    kl: float
    """KL(teacher || student) in nats."""
    label: str | None
    teacher: str
    """The class that the teacher predicts."""
    student: str
    teacher_confidence: float
    student_confidence: float
    thumbnail: str | None = None
    """Path of a small picture, relative to the run directory."""


@dataclass(frozen=True, kw_only=True)
class Timing(Record):
    """The latency of one call, from `n` calls that took turns with those of other networks."""

    median_ms: float
    p95_ms: float
    n: int
    samples_ms: tuple[float, ...] | None = None
    images_per_s: float | None
    warmup: int
    """Calls before the first one that was timed."""
    threads: int = 1
    device: str = "cpu"
    speedup: float | None = None
    """How many times faster than the first network: median over the rounds."""
    speedup_range: tuple[float, float] | None = None
    """Its 95 % interval."""

    def speedup_over(self, other: Timing | None = None) -> tuple[float, float, float]:
        """The measured speedup and its interval. If none was measured, the ratio of the medians of
        `other` and this one, without an interval.
        """
        speedup = self.speedup
        if not speedup:
            assert other is not None, "no speedup was measured"
            speedup = other.median_ms / self.median_ms
        low, high = self.speedup_range or (speedup, speedup)
        return speedup, low, high


@dataclass(frozen=True, kw_only=True)
class NetworkCosts(Record):
    """The size of a network and the operations for one sample."""

    params: int
    macs: int
    """Multiply-adds."""
    depth: int
    """Weighted layers on the longest path."""
    flops: int
    """Two for each multiply-add."""
