"""An ablation in words: a verdict on each question, tables and charts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fitcompress.formatting import (
    count_text,
    duration_text,
    integer_text,
    p_text,
    percent_text,
    points_text,
)
from fitcompress.report.ablation_facts import REFERENCES, Ablation, summary_of
from fitcompress.report.charts import MeanRow, Means
from fitcompress.report.document import NONE, Cell, Document, Section, Sentence, Table, in_words
from fitcompress.report.headline import SIGNIFICANT

__all__ = ["build_document", "verdict"]


def verdict(test: Mapping[str, Any]) -> str:
    """What one test says of its question, and no more than it carries.

    >>> test = {"subject": "hints", "mean": 0.004, "low": -0.001, "high": 0.009, "n": 5}
    >>> verdict({**test, "p_holm": 0.09})
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


def build_document(ablation: Ablation) -> Document:
    """The report in words, tables and charts."""
    return Document(
        title="fitcompress ablation",
        name=str(ablation.path),
        heading=f"{Path(ablation.facts['teacher']).name}: what the student owes to its teacher",
        sentences=tuple(_sentences(ablation)),
        sections=tuple(part for part in _sections(ablation) if not part.is_empty),
    )


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
        summary = summary_of(accuracies)
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
    teacher = in_words(ablation.teacher_accuracy, lambda share: percent_text(share, 2))
    note = (
        f"The teacher's top-1 is {teacher}."
        " Means over seeds with Student's 95 % interval, in points; differences are paired by seed,"
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
    counts = [integer_text(mcnemar[key]) for key in ("only_arm", "only_against")]
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
        if summary := summary_of(accuracies):
            values = tuple(accuracies.values())
            drawn.append(MeanRow(arm, values, summary["low"], summary["high"]))
    charts = (Means("Top-1 of every seed, mean and interval", tuple(drawn)),) if drawn else ()
    return Section("Every seed", table=Table(columns, rows), charts=charts)


def _percent(share: float | None) -> Cell:
    return Cell(in_words(share, lambda known: percent_text(known, 2)))
