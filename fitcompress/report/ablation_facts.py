"""The runs of an ablation, read from its directory, and the tests between its arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Self, TypeVar

from fitcompress.errors import RunError
from fitcompress.evaluation.significance import holm, mean_interval, paired_t_test, paired_test
from fitcompress.records.ablation_record import AblationRecord
from fitcompress.records.json_record import Record
from fitcompress.records.measurements import MeanInterval
from fitcompress.report.comparison import right_answers
from fitcompress.report.run_facts import read_record
from fitcompress.report.run_report import Report
from fitcompress.rundir import RunDir

__all__ = [
    "ABLATION",
    "REFERENCES",
    "AblationFacts",
    "ArmCost",
    "ArmTest",
    "PooledTest",
    "cell_path",
    "summary_of",
]

ABLATION = "ablation.json"
"""The file that describes an ablation, in its directory."""
REFERENCES = ("kd", "bp")
"""The arms that all others are compared with, if they were run."""


def cell_path(root: Path, arm: str, seed: int) -> Path:
    """The run directory of an arm and a seed."""
    return root / arm / f"seed{seed}"


@dataclass(frozen=True, kw_only=True)
class PooledTest(Record):
    """McNemar's test of two arms on the predictions of all seeds together."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int
    """Predictions: images times seeds."""
    only_arm: int
    """Predictions that only the arm has right."""
    only_against: int
    p_holm: float | None


@dataclass(frozen=True, kw_only=True)
class ArmTest(Record):
    """The paired t-test over seeds of an arm against another, in top-1 accuracy."""

    arm: str
    against: str
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n: int
    """Seeds."""
    p_value: float | None
    mcnemar: PooledTest | None
    p_holm: float | None
    """After Holm's correction for the other tests of the same table."""
    subject: str | None = None
    """The question that the test answers, if it was asked before the runs."""


@dataclass(frozen=True, kw_only=True)
class ArmCost(Record):
    """The cost of an arm's training steps, the mean over seeds."""

    epochs: float
    seconds: float
    """Without the time to compute teacher outputs that all arms share."""
    flops: float
    """With the teacher's forward pass in every step."""


@dataclass(frozen=True)
class AblationFacts:
    """An ablation, finished or not."""

    path: Path
    record: AblationRecord

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads the ablation in a directory.

        Raises:
            RunError: the directory holds none.
        """
        root = RunDir(Path(path))
        written = root.read_json(ABLATION)
        if not written:
            raise RunError(
                f"opening the ablation '{path}': the directory has no {ABLATION}",
                code="ablation-missing",
                advice="Pass the directory given to `fitcompress ablate --out`.",
                path=str(path),
            )
        return cls(root.path, read_record(AblationRecord, root, ABLATION, written))

    @property
    def arms(self) -> tuple[str, ...]:
        """The names of the arms, in the requested order."""
        return tuple(arm.name for arm in self.record.arms)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The requested seeds."""
        return tuple(sorted({seed for _, seed in self.record.cells}))

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """The requested runs that are not finished, by arm and seed."""
        return tuple(cell for cell in self.record.cells if cell not in self.cells)

    @property
    def failed(self) -> dict[tuple[str, int], str]:
        """The error messages of the runs that failed last time, by arm and seed."""
        return {(arm, seed): message for arm, seed, message in self.record.failed or ()}

    @cached_property
    def cells(self) -> dict[tuple[str, int], Report]:
        """The finished runs, by arm and seed."""
        places = {cell: cell_path(self.path, *cell) for cell in self.record.cells}
        return {
            cell: Report.load(place)
            for cell, place in places.items()
            if RunDir(place).is_finished()
        }

    def accuracies(self, arm: str) -> dict[int, float]:
        """Top-1 accuracy of the student on the evaluation split, by seed."""
        return {
            seed: student.accuracy.top1
            for (name, seed), report in self.cells.items()
            if name == arm and (student := report.results.student) and student.accuracy
        }

    @property
    def teacher_accuracy(self) -> float | None:
        """Top-1 accuracy of the teacher on the evaluation split; None before a run is finished."""
        teachers = [report.results.teacher for report in self.cells.values()]
        found = [teacher.accuracy for teacher in teachers[:1] if teacher and teacher.accuracy]
        return found[0].top1 if found else None

    def cost(self, arm: str) -> ArmCost | None:
        """The cost of an arm; None before a run of it is finished."""
        runs = [report.results.stages for (name, _), report in self.cells.items() if name == arm]
        if not runs:
            return None
        return ArmCost(
            epochs=fmean(sum(stage.epochs or 0 for stage in run) for run in runs),
            seconds=fmean(sum(stage.seconds or 0.0 for stage in run) for run in runs),
            flops=fmean(
                sum((stage.num_images or 0) * (stage.flops_per_image or 0) for stage in run)
                for run in runs
            ),
        )

    @cached_property
    def answers(self) -> tuple[ArmTest, ...]:
        """The tests of the questions whose arms were both run. Holm's correction is for these
        alone, since the questions were fixed before the runs.
        """
        subjects = {(each.arm, each.against): each.subject for each in self.record.questions}
        tests = self.compare(list(subjects))
        return tuple(replace(test, subject=subjects[test.arm, test.against]) for test in tests)

    @cached_property
    def comparisons(self) -> tuple[ArmTest, ...]:
        """The tests of each arm against kd and bp, with Holm's correction for these."""
        pairs = [(arm, other) for other in REFERENCES for arm in self.arms if arm != other]
        return self.compare([pair for pair in pairs if pair != ("bp", "kd")])

    def compare(self, pairs: Sequence[tuple[str, str]]) -> tuple[ArmTest, ...]:
        """The tests of pairs of arms with Holm's correction, without pairs that share no seed."""
        tests = [test for pair in pairs if (test := self._test(*pair))]
        pooled = iter(_with_holm([test.mcnemar for test in tests if test.mcnemar]))
        return tuple(
            replace(test, mcnemar=next(pooled) if test.mcnemar else None)
            for test in _with_holm(tests)
        )

    def _test(self, arm: str, other: str) -> ArmTest | None:
        one, two = self.accuracies(arm), self.accuracies(other)
        shared = [seed for seed in self.seeds if seed in one and seed in two]
        if not shared:
            return None
        found = paired_t_test([one[seed] - two[seed] for seed in shared])
        pooled = self._pooled(arm, other, shared)
        return ArmTest(arm=arm, against=other, **vars(found), mcnemar=pooled, p_holm=None)

    def _pooled(self, arm: str, other: str, seeds: Sequence[int]) -> PooledTest | None:
        only_other = only_arm = n = 0
        for seed in seeds:
            own = right_answers(self.cells[arm, seed])
            against = right_answers(self.cells[other, seed])
            if own is None or against is None or len(own) != len(against):
                return None
            only_other += int((against & ~own).sum())
            only_arm += int((own & ~against).sum())
            n += len(own)
        test = paired_test(only_other, only_arm, n)
        return PooledTest(
            difference=test.difference,
            low=test.low,
            high=test.high,
            p_value=test.p_value,
            n=n,
            only_arm=only_arm,
            only_against=only_other,
            p_holm=None,
        )


def summary_of(accuracies: Mapping[int, float]) -> MeanInterval | None:
    """The mean accuracy over seeds, its interval cut to 0..1."""
    if not accuracies:
        return None
    found = mean_interval(list(accuracies.values()))
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


_T = TypeVar("_T", ArmTest, PooledTest)


def _with_holm(tests: Sequence[_T]) -> list[_T]:
    adjusted = iter(holm([test.p_value for test in tests if test.p_value is not None]))
    return [
        test if test.p_value is None else replace(test, p_holm=next(adjusted)) for test in tests
    ]
