"""Several ways to train one student, over several seeds: what each reached, and what is shown.

Knows no torch. Reads what `ablate` left: the arms and their questions, and a run for each arm and
seed, finished or not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fitcompress.errors import RunError
from fitcompress.evaluation.significance import holm, mean_interval, paired_t_test, paired_test
from fitcompress.report.comparison import right_answers
from fitcompress.report.document import Document
from fitcompress.report.rendered import Rendered
from fitcompress.report.run_report import Report
from fitcompress.rundir import RunDir

__all__ = ["ABLATION", "REFERENCES", "Ablation", "cell_path", "compared", "summary_of"]

ABLATION = "ablation.json"
"""What the directory of an ablation holds."""
REFERENCES = ("kd", "bp")
"""Arms that all others are held against, where they were run."""


def cell_path(root: Path, arm: str, seed: int) -> Path:
    """The run of an arm with a seed."""
    return root / arm / f"seed{seed}"


@dataclass(frozen=True)
class Ablation(Rendered):
    """Arms, and what their runs gave."""

    path: Path
    facts: Mapping[str, Any]
    """`ablation.json`: `teacher`; `arms` (`name`, `meaning`, what each `changes`); `questions`
    (`arm`, `against`, `subject`); `cells`, each an arm and a seed that were asked for; whether some
    came later (`is_extended`); and what `ablate` keeps to go on."""

    @classmethod
    def load(cls, path: Path | str) -> Ablation:
        """The ablation in a directory, finished or not.

        Raises:
            RunError: it holds none.
        """
        facts = RunDir(Path(path)).read_json(ABLATION)
        if not facts:
            raise RunError(
                f"opening the ablation {str(path)!r}: there is none",
                advice="name the directory given to `fitcompress ablate --out`",
            )
        return cls(Path(path), facts)

    @property
    def arms(self) -> tuple[str, ...]:
        """Their names, in the order they were asked for."""
        return tuple(arm["name"] for arm in self.facts["arms"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those that were asked for, of any arm."""
        return tuple(sorted({seed for _, seed in self._asked}))

    @property
    def missing(self) -> tuple[tuple[str, int], ...]:
        """The runs that were asked for and are not finished, by arm and seed."""
        return tuple(cell for cell in self._asked if cell not in self.cells)

    @property
    def failed(self) -> dict[tuple[str, int], str]:
        """Those of them that ended early when they were trained last, and why."""
        return {(arm, seed): why for arm, seed, why in self.facts.get("failed", ())}

    @property
    def _asked(self) -> list[tuple[str, int]]:
        return [(arm, seed) for arm, seed in self.facts["cells"]]

    @cached_property
    def cells(self) -> dict[tuple[str, int], Report]:
        """The finished runs, by arm and seed."""
        places = {cell: cell_path(self.path, *cell) for cell in self._asked}
        return {
            key: Report.load(place) for key, place in places.items() if RunDir(place).is_finished()
        }

    def accuracies(self, arm: str) -> dict[int, float]:
        """Top-1 on the evaluation split, by seed."""
        found = {
            seed: (report.model("student") or {}).get("accuracy")
            for (name, seed), report in self.cells.items()
            if name == arm
        }
        return {seed: accuracy["top1"] for seed, accuracy in found.items() if accuracy}

    @property
    def teacher_accuracy(self) -> float | None:
        """The teacher's top-1 on the evaluation split; None where no run is finished."""
        found = [(report.model("teacher") or {}).get("accuracy") for report in self.cells.values()]
        return found[0]["top1"] if found and found[0] else None

    def cost(self, arm: str) -> dict[str, float] | None:
        """`epochs`, `seconds` and `flops` of training steps, the means over seeds; None where no
        run is finished. The teacher's operations count as if it were asked in each step; the time
        does not have those in which answers were kept for all arms.
        """
        own = [report for (name, _), report in self.cells.items() if name == arm]
        if not own:
            return None
        runs = [report.results["stages"] for report in own]
        return {
            "epochs": fmean(sum(stage["epochs"] for stage in run) for run in runs),
            "seconds": fmean(sum(stage["seconds"] for stage in run) for run in runs),
            "flops": fmean(
                sum(stage["num_images"] * stage["flops_per_image"] for stage in run) for run in runs
            ),
        }

    @cached_property
    def answers(self) -> tuple[dict[str, Any], ...]:
        """The tests of the questions of which both arms were run, each with its `subject`: see
        `compared`. What is to be shown was fixed before, so Holm's correction is over these alone.
        """
        asked = self.facts["questions"]
        subjects = {(each["arm"], each["against"]): each["subject"] for each in asked}
        tests = compared(self, list(subjects))
        return tuple({**test, "subject": subjects[test["arm"], test["against"]]} for test in tests)

    @cached_property
    def comparisons(self) -> tuple[dict[str, Any], ...]:
        """The tests of each arm against kd and against bp, and Holm's correction over these."""
        pairs = [(arm, other) for other in REFERENCES for arm in self.arms if arm != other]
        return tuple(compared(self, [pair for pair in pairs if pair != ("bp", "kd")]))

    @property
    def verdicts(self) -> list[str]:
        """The answers in words."""
        from fitcompress.report.verdicts import verdict

        return [verdict(test) for test in self.answers]

    @property
    def html_path(self) -> Path:
        """Where its page lies when nobody says where."""
        return self.path / "ablation.html"

    def to_dict(self) -> dict[str, Any]:
        """The ablation for scripts, ready for JSON."""
        arms = [
            {
                **arm,
                "accuracies": self.accuracies(arm["name"]),
                "accuracy": summary_of(self.accuracies(arm["name"])),
                "cost": self.cost(arm["name"]),
            }
            for arm in self.facts["arms"]
        ]
        return {
            "ablation": str(self.path),
            "teacher": self.facts["teacher"],
            "teacher_accuracy": self.teacher_accuracy,
            "seeds": list(self.seeds),
            "missing": [list(cell) for cell in self.missing],
            "failed": [[*cell, why] for cell, why in self.failed.items()],
            "is_extended": self.facts["is_extended"],
            "arms": arms,
            "answers": [dict(test) for test in self.answers],
            "comparisons": [dict(test) for test in self.comparisons],
            "verdicts": self.verdicts,
        }

    def document(self) -> Document:
        """The report in words, tables and charts."""
        from fitcompress.report.verdicts import build_document

        return build_document(self)


def summary_of(accuracies: Mapping[int, float]) -> dict[str, float | None] | None:
    """The mean of accuracies and its interval, as far as they are shares."""
    if not accuracies:
        return None
    found: dict[str, Any] = mean_interval(list(accuracies.values())).to_dict()
    low, high = found["low"], found["high"]
    if low is not None and high is not None:
        found |= {"low": max(0.0, low), "high": min(1.0, high)}
    return found


def compared(ablation: Ablation, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each pair `arm`, `against`, the paired t-test over seeds (`mean`, `sd`, `low`, `high`,
    `p_value`, `p_holm`, `n`), and `mcnemar` on the predictions of all seeds together (as
    `significance.paired_test`, with `p_holm`; `only_arm` and `only_against` for what one alone has
    right), or None. Pairs without a common seed are left out.
    """
    found = [
        {"arm": arm, "against": other, **_over_seeds(ablation, arm, other)} for arm, other in pairs
    ]
    tests = [test for test in found if test["n"]]
    for family in (tests, [test["mcnemar"] for test in tests if test["mcnemar"]]):
        known = [test for test in family if test["p_value"] is not None]
        adjusted = iter(holm([test["p_value"] for test in known]))
        for test in family:
            test["p_holm"] = None if test["p_value"] is None else next(adjusted)
    return tests


def _over_seeds(ablation: Ablation, arm: str, other: str) -> dict[str, Any]:
    """The tests of an arm against another, over the seeds that both have."""
    one, two = ablation.accuracies(arm), ablation.accuracies(other)
    shared = [seed for seed in ablation.seeds if seed in one and seed in two]
    if not shared:
        return {"n": 0}
    found = paired_t_test([one[seed] - two[seed] for seed in shared]).to_dict()
    return {**found, "mcnemar": _pooled(ablation, arm, other, shared)}


def _pooled(
    ablation: Ablation, arm: str, other: str, seeds: Sequence[int]
) -> dict[str, float] | None:
    only_other = only_arm = n = 0
    for seed in seeds:
        own = right_answers(ablation.cells[arm, seed])
        against = right_answers(ablation.cells[other, seed])
        if own is None or against is None or len(own) != len(against):
            return None
        only_other += int((against & ~own).sum())
        only_arm += int((own & ~against).sum())
        n += len(own)
    test = paired_test(only_other, only_arm, n).to_dict()
    return test | {"only_arm": test.pop("only_second"), "only_against": test.pop("only_first")}
