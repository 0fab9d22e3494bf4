"""Several ways to train one student, over several seeds: what each reached, and what is shown.

Knows no torch. Reads what `ablate` left: the arms and their questions, and a run for each arm and
seed, finished or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from fitcompress.errors import RunError
from fitcompress.report.charts import MeanRow, Means
from fitcompress.report.comparison import right_answers
from fitcompress.report.document import NONE, Cell, Document, Section, Sentence, Table, in_words
from fitcompress.report.headline import SIGNIFICANT
from fitcompress.report.rendered import Rendered
from fitcompress.report.report import Report
from fitcompress.report.words import (
    count_text,
    duration_text,
    integer_text,
    p_text,
    percent_text,
    points_text,
)
from fitcompress.rundir import RunDir
from fitcompress.significance import holm, mean_interval, paired_t_test, paired_test

__all__ = ["ABLATION", "Ablation", "cell_path"]

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
        `_tested`. What is to be shown was fixed before, so Holm's correction is over these alone.
        """
        asked = self.facts["questions"]
        subjects = {(each["arm"], each["against"]): each["subject"] for each in asked}
        tests = _tested(self, list(subjects))
        return tuple({**test, "subject": subjects[test["arm"], test["against"]]} for test in tests)

    @cached_property
    def comparisons(self) -> tuple[dict[str, Any], ...]:
        """The tests of each arm against kd and against bp, and Holm's correction over these."""
        pairs = [(arm, other) for other in REFERENCES for arm in self.arms if arm != other]
        return tuple(_tested(self, [pair for pair in pairs if pair != ("bp", "kd")]))

    @property
    def verdicts(self) -> list[str]:
        """The answers in words."""
        return [_verdict(test) for test in self.answers]

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
                "accuracy": _summary(self.accuracies(arm["name"])),
                "cost": self.cost(arm["name"]),
            }
            for arm in self.facts["arms"]
        ]
        return {
            "ablation": str(self.path),
            "teacher": self.facts["teacher"],
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
        return Document(
            title="fitcompress ablation",
            name=str(self.path),
            heading=f"{self.facts['teacher']}: what the student owes to its teacher",
            sentences=tuple(_sentences(self)),
            sections=tuple(part for part in _sections(self) if not part.is_empty),
        )


def _summary(accuracies: Mapping[int, float]) -> dict[str, float | None] | None:
    """The mean of accuracies and its interval, as far as they are shares."""
    if not accuracies:
        return None
    found = mean_interval(list(accuracies.values()))
    low, high = found["low"], found["high"]
    if low is not None and high is not None:
        found |= {"low": max(0.0, low), "high": min(1.0, high)}
    return found


def _tested(ablation: Ablation, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """For each pair `arm`, `against`, the paired t-test over seeds (`mean`, `sd`, `low`, `high`,
    `p_value`, `p_holm`, `n`), and `mcnemar` on the predictions of all seeds together (as
    `significance.paired_test`, with `p_holm`), or None. Pairs without a common seed are left out.
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
    found = paired_t_test([one[seed] - two[seed] for seed in shared])
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
    return paired_test(only_other, only_arm, n)


# --- words -------------------------------------------------------------------------------------


def _verdict(test: Mapping[str, Any]) -> str:
    """What one test says of its question, and no more than it carries.

    >>> test = {"subject": "hints", "mean": 0.004, "low": -0.001, "high": 0.009, "n": 5}
    >>> _verdict({**test, "p_holm": 0.09})
    'hints: +0.40 points, 95 % interval -0.10 to +0.90, 5 seeds, p = 0.09 after Holm: not shown'
    """
    found = f"{test['subject']}: {points_text(test['mean'], 2)}"
    if test["p_holm"] is None:
        why = "with one seed" if test["n"] == 1 else f"with each of {test['n']} seeds alike"
        return f"{found} {why}: nothing is shown"
    words = f"{found}, 95 % interval {_bounds(test)}, {_counted(test['n'])}"
    words += f", {p_text(test['p_holm'])} after Holm"
    if test["p_holm"] > SIGNIFICANT:
        return f"{words}: not shown"
    return f"{words}: {'helped' if test['mean'] > 0 else 'hurt'}"


def _bounds(test: Mapping[str, Any]) -> str:
    return f"{100 * test['low']:+.2f} to {100 * test['high']:+.2f}"


def _sentences(ablation: Ablation) -> Iterator[Sentence]:
    missing, total = ablation.missing, len(ablation.facts["cells"])
    if missing:
        yield Sentence(f"Unfinished: {len(missing)} of {total} runs are missing.", True)
    for (arm, seed), why in ablation.failed.items():
        yield Sentence(f"{arm}, seed {seed}, failed: {why}.", True)
    if ablation.facts["is_extended"]:
        words = "Arms or seeds came later: adding until something shows will show something."
        yield Sentence(words, True)
    for verdict in ablation.verdicts:
        yield Sentence(f"{verdict[0].upper()}{verdict[1:]}.")


def _sections(ablation: Ablation) -> Iterator[Section]:
    yield _arms(ablation)
    yield _cells(ablation)
    yield _tests("The questions", ablation.answers, _QUESTIONS_NOTE)
    yield _tests("Each arm against kd and bp", ablation.comparisons, _COMPARISONS_NOTE)
    yield Section(
        "What the arms are",
        table=Table(
            ("Arm", "Is", "Changes in the recipe"),
            tuple(
                (Cell(arm["name"]), Cell(arm["meaning"]), Cell(", ".join(changes) or NONE))
                for arm in ablation.facts["arms"]
                for changes in [[f"{name}={now}" for name, now in arm["changes"].items()]]
            ),
            is_numeric=False,
        ),
    )


def _arms(ablation: Ablation) -> Section:
    rows = []
    known = {(test["arm"], test["against"]): test for test in ablation.comparisons}
    for arm in ablation.arms:
        accuracies, cost = ablation.accuracies(arm), ablation.cost(arm)
        summary = _summary(accuracies)
        if summary is None or cost is None:
            continue
        interval = ""
        if summary["low"] is not None and summary["high"] is not None:
            interval = f"{100 * summary['low']:.1f} to {100 * summary['high']:.1f}"
        rows.append(
            (
                Cell(arm, _counted(len(accuracies))),
                Cell(percent_text(fmean(accuracies.values()), 2), interval),
                Cell(in_words(summary["sd"], lambda sd: f"{100 * sd:.2f}")),
                *(_against(known.get((arm, other))) for other in REFERENCES),
                Cell(f"{cost['epochs']:.3g}"),
                Cell(duration_text(cost["seconds"]), f"{count_text(cost['flops'])}FLOPs"),
            )
        )
    held = (f"- {name}" for name in REFERENCES)
    columns = ("Arm", "Top-1, mean", "sd", *held, "Epochs", "Training")
    note = (
        "Means over seeds with Student's 95 % interval, in points; differences are paired by seed,"
        " which decides the first weights, the order of the images and their augmentation. Epochs"
        " are those of both stages. Time is that of training steps, without asking the teacher"
        " where its answers are kept for all arms; FLOPs have the teacher's in each step."
    )
    return Section("The arms", note if rows else "", Table(columns, tuple(rows)))


def _counted(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def _against(test: Mapping[str, Any] | None) -> Cell:
    if test is None:
        return Cell(NONE)
    return Cell(points_text(test["mean"], 2), "" if test["p_value"] is None else _bounds(test))


_QUESTIONS_NOTE = (
    "What is asked does not depend on what was found. p-values after Holm's correction for as many"
    " tests as have one, the uncorrected ones below. The t-test is over seeds, and is what the"
    " verdicts go by; McNemar's is over the predictions of all seeds together, in which an image"
    " comes once a seed."
)
_COMPARISONS_NOTE = "Holm's correction is over the p-values of this table."


def _tests(title: str, tests: Sequence[Mapping[str, Any]], note: str = "") -> Section:
    rows = tuple(
        (
            Cell(f"{test['arm']} - {test['against']}", _counted(test["n"])),
            _against(test),
            Cell(*_p_values(test)),
            Cell(*_p_values(test["mcnemar"] or {})),
            Cell(*_only(test["mcnemar"])),
        )
        for test in tests
    )
    columns = ("", "Difference", "p, t-test", "p, McNemar", "Only one right")
    return Section(title, note if rows else "", Table(columns, rows))


def _p_values(test: Mapping[str, Any]) -> tuple[str, str]:
    if test.get("p_value") is None:
        return NONE, ""
    corrected, own = (p_text(test[key]).removeprefix("p = ") for key in ("p_holm", "p_value"))
    return corrected, own


def _only(mcnemar: Mapping[str, Any] | None) -> tuple[str, str]:
    if mcnemar is None:
        return NONE, ""
    counts = [integer_text(mcnemar[key]) for key in ("only_second", "only_first")]
    return " and ".join(counts), f"of {integer_text(mcnemar['n'])}"


def _cells(ablation: Ablation) -> Section:
    known = {arm: ablation.accuracies(arm) for arm in ablation.arms}
    rows = tuple(
        (Cell(arm), *(_percent(known[arm].get(seed)) for seed in ablation.seeds))
        for arm in ablation.arms
        if known[arm]
    )
    columns = ("Arm", *(f"seed {seed}" for seed in ablation.seeds))
    drawn = []
    for arm, accuracies in known.items():
        if summary := _summary(accuracies):
            values = tuple(accuracies.values())
            drawn.append(MeanRow(arm, values, summary["low"], summary["high"]))
    charts = (Means("Top-1 of every seed, mean and interval", tuple(drawn)),) if drawn else ()
    return Section("Every seed", table=Table(columns, rows), charts=charts)


def _percent(share: float | None) -> Cell:
    return Cell(in_words(share, lambda known: percent_text(known, 2)))
