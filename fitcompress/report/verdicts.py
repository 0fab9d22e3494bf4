"""The report of an ablation as a document: a verdict on each question, tables and charts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from fitcompress.evaluation.significance import SIGNIFICANT
from fitcompress.formatting import (
    count_text,
    duration_text,
    integer_text,
    p_text,
    percent_text,
    points_text,
)
from fitcompress.records.measurements import MeanInterval
from fitcompress.report.ablation_facts import (
    REFERENCES,
    AblationFacts,
    ArmTest,
    PooledTest,
    summary_of,
)
from fitcompress.report.charts import MeanRow, Means
from fitcompress.report.document import (
    NONE,
    Cell,
    Document,
    Section,
    Sentence,
    Table,
    text_or_none,
)

__all__ = ["build_ablation_document", "verdict"]


def verdict(test: ArmTest) -> str:
    """The answer that a test gives to its question."""
    found = f"{test.subject}: {points_text(test.mean, 2)}"
    if test.p_holm is None:
        why = "one seed" if test.n == 1 else f"equal differences for all {test.n} seeds"
        return f"{found} with {why}: not tested"
    text = (
        f"{found}, 95 % interval {_bounds(test)}, {_seeds_text(test.n)},"
        f" {p_text(test.p_holm)} after Holm's correction"
    )
    if test.p_holm > SIGNIFICANT:
        return f"{text}: not significant"
    return f"{text}: {'helped' if test.mean > 0 else 'hurt'}"


def _bounds(test: ArmTest) -> str:
    if test.low is None or test.high is None:
        return ""
    return f"{100 * test.low:+.2f} to {100 * test.high:+.2f}"


def _seeds_text(number: int) -> str:
    return f"{number} seed{'s' * (number != 1)}"


def build_ablation_document(ablation: AblationFacts) -> Document:
    """The report with all sections that are not empty."""
    return Document(
        title="fitcompress ablation",
        name=str(ablation.path),
        heading=f"{Path(ablation.record.teacher).name}: what the teacher contributes",
        sentences=tuple(_sentences(ablation)),
        sections=tuple(part for part in _sections(ablation) if not part.is_empty),
    )


def _sentences(ablation: AblationFacts) -> Iterator[Sentence]:
    missing, total = ablation.missing, len(ablation.record.cells)
    if missing:
        yield Sentence(f"Unfinished: {len(missing)} of {total} runs are missing.", True)
    for (arm, seed), why in ablation.failed.items():
        yield Sentence(f"The run of {arm} with seed {seed} failed: {why}.", True)
    if ablation.record.is_extended:
        yield Sentence(
            "Arms or seeds were added later: adding runs until a difference is significant makes"
            " false positives more likely.",
            True,
        )
    for test in ablation.answers:
        text = verdict(test)
        yield Sentence(f"{text[0].upper()}{text[1:]}.")


def _sections(ablation: AblationFacts) -> Iterator[Section]:
    yield _arms(ablation)
    yield _cells(ablation)
    yield _tests("Questions", ablation.answers, _QUESTIONS_NOTE)
    yield _tests("Each arm against kd and bp", ablation.comparisons, _COMPARISONS_NOTE)
    yield Section(
        "Definition of the arms",
        table=Table(
            ("Arm", "Training", "Changes in the recipe"),
            tuple(
                (Cell(arm.name), Cell(arm.meaning), Cell(", ".join(changes) or NONE))
                for arm in ablation.record.arms
                for changes in [[f"{name}={value}" for name, value in arm.changes.items()]]
            ),
            is_numeric=False,
        ),
    )


def _arms(ablation: AblationFacts) -> Section:
    rows = []
    known = {(test.arm, test.against): test for test in ablation.comparisons}
    for arm in ablation.arms:
        accuracies, cost = ablation.accuracies(arm), ablation.cost(arm)
        summary = summary_of(accuracies)
        if summary is None or cost is None:
            continue
        rows.append(
            (
                Cell(arm, _seeds_text(len(accuracies))),
                Cell(percent_text(fmean(accuracies.values()), 2), _interval(summary)),
                Cell(text_or_none(summary.sd, lambda sd: f"{100 * sd:.2f}")),
                *(_difference(known.get((arm, other))) for other in REFERENCES),
                Cell(f"{cost.epochs:.3g}"),
                Cell(duration_text(cost.seconds), f"{count_text(cost.flops)}FLOPs"),
            )
        )
    columns = ("Arm", "Top-1, mean", "sd", *(f"vs {name}" for name in REFERENCES))
    teacher = text_or_none(ablation.teacher_accuracy, lambda share: percent_text(share, 2))
    note = (
        f"The teacher's top-1 accuracy is {teacher}. Means over seeds with Student's 95 % interval,"
        " in points. Differences are paired by seed, which determines the initial weights, the"
        " order of the images and their augmentation. Epochs are those of both stages. The time is"
        " that of the training steps, without computing teacher outputs that all arms share; FLOPs"
        " include the teacher's forward pass in each step."
    )
    table = Table((*columns, "Epochs", "Training"), tuple(rows))
    return Section("Arms", note if rows else "", table)


def _interval(summary: MeanInterval) -> str:
    if summary.low is None or summary.high is None:
        return ""
    return f"{100 * summary.low:.1f} to {100 * summary.high:.1f}"


def _difference(test: ArmTest | None) -> Cell:
    if test is None:
        return Cell(NONE)
    return Cell(points_text(test.mean, 2), "" if test.p_value is None else _bounds(test))


_QUESTIONS_NOTE = (
    "The questions were fixed before the runs. p-values are after Holm's correction for the number"
    " of tests in the table, with the uncorrected ones below them. The verdicts use the t-test over"
    " seeds. McNemar's test uses the predictions of all seeds together, so each image counts once"
    " per seed."
)
_COMPARISONS_NOTE = "Holm's correction covers the tests of this table."


def _tests(title: str, tests: Sequence[ArmTest], note: str) -> Section:
    rows = tuple(
        (
            Cell(f"{test.arm} - {test.against}", _seeds_text(test.n)),
            _difference(test),
            _p_values(test),
            _p_values(test.mcnemar),
            _only_right(test.mcnemar),
        )
        for test in tests
    )
    columns = ("Arms", "Difference", "p, t-test", "p, McNemar", "Only one right")
    return Section(title, note if rows else "", Table(columns, rows))


def _p_values(test: ArmTest | PooledTest | None) -> Cell:
    if test is None or test.p_value is None or test.p_holm is None:
        return Cell(NONE)
    corrected, own = (p_text(value).removeprefix("p = ") for value in (test.p_holm, test.p_value))
    return Cell(corrected, own)


def _only_right(test: PooledTest | None) -> Cell:
    if test is None:
        return Cell(NONE)
    counts = f"{integer_text(test.only_arm)} and {integer_text(test.only_against)}"
    return Cell(counts, f"of {integer_text(test.n)}")


def _cells(ablation: AblationFacts) -> Section:
    known = {arm: ablation.accuracies(arm) for arm in ablation.arms}
    rows = tuple(
        (Cell(arm), *(_percent_cell(known[arm].get(seed)) for seed in ablation.seeds))
        for arm in ablation.arms
        if known[arm]
    )
    columns = ("Arm", *(f"seed {seed}" for seed in ablation.seeds))
    drawn = [
        MeanRow(arm, tuple(accuracies.values()), summary.low, summary.high)
        for arm, accuracies in known.items()
        if (summary := summary_of(accuracies))
    ]
    charts = (Means("Top-1 of each seed, with mean and interval", tuple(drawn)),) if drawn else ()
    return Section("All seeds", table=Table(columns, rows), charts=charts)


def _percent_cell(share: float | None) -> Cell:
    return Cell(text_or_none(share, lambda known: percent_text(known, 2)))
