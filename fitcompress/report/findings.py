"""Sections on training, errors, calibration and latency. Pure.

Each function returns a section, which is empty if the run has no such results (it is unfinished,
the images have no labels, or the outputs are not class scores).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from fitcompress.formatting import (
    integer_text,
    ms_text,
    percent_text,
    points_text,
    runtime_name,
    stage_title,
    threads_text,
)
from fitcompress.records.measurements import (
    Calibration,
    CalibrationBin,
    ClassAccuracy,
    Disagreement,
    Doubt,
    Share,
    Timing,
)
from fitcompress.records.run_results import EpochRecord, ModelResult
from fitcompress.report.charts import Bars, Chart, Dots, Key, Line, Lines, Point, Strip, Strips
from fitcompress.report.document import NONE, Cell, Picture, Section, Table
from fitcompress.report.rows import share_cell
from fitcompress.report.run_facts import RunFacts

__all__ = ["calibration", "classes", "curves", "disagreements", "doubts", "latencies"]

_MOST_CLASSES = 20
_MOST_PAIRS = 10
_KEYS = {"teacher": Key("teacher", 1), "student": Key("student", 2), "baseline": Key("baseline", 3)}
_STAGE_COLORS = {"teacher": 1, "stage1": 2, "stage2": 2, "baseline": 3}


# --- learning ----------------------------------------------------------------------------------


def curves(report: RunFacts) -> Section:
    """The held-out scores of all stages together, then the losses of each stage."""
    scores = (("top1", "Held-out top-1"), ("agreement", "Held-out agreement with the teacher"))
    charts: list[Chart] = [_score_chart(report, key, title) for key, title in scores]
    charts += [_loss_chart(stage, rows) for stage, rows in report.curves.items()]
    note = (
        "A random tenth of the training images is held out. Training chooses the best epoch by"
        " its scores on them."
    )
    return Section("Learning curves", note, charts=tuple(c for c in charts if c.legend))


def _score_chart(report: RunFacts, key: str, title: str) -> Lines:
    lines = (
        _curve(
            Key(stage_title(stage), _STAGE_COLORS.get(stage, 4)),
            rows,
            lambda epoch: epoch.held_out.get(key),
            percent_text,
        )
        for stage, rows in report.curves.items()
    )
    known = tuple(line for line in lines if line.points)
    return Lines(title, "epoch", "", known, is_share=True)


def _loss_chart(stage: str, rows: Sequence[EpochRecord]) -> Lines:
    color = _STAGE_COLORS.get(stage, 4)
    lines = (
        _curve(Key("training", color), rows, lambda epoch: epoch.losses.get("loss"), _four_digits),
        _curve(
            Key("held out", color, is_dashed=True),
            rows,
            lambda epoch: epoch.held_out.get("loss"),
            _four_digits,
        ),
    )
    loss = "hint loss" if stage == "stage1" else "loss"
    known = tuple(line for line in lines if line.points)
    return Lines(f"{stage_title(stage)}, {loss}", "epoch", "", known)


def _curve(
    key: Key,
    rows: Sequence[EpochRecord],
    value_of: Callable[[EpochRecord], float | None],
    text: Callable[[float], str],
) -> Line:
    values = ((row.epoch, value_of(row)) for row in rows)
    return Line(
        key,
        tuple(
            Point(value, epoch, hint=f"{key.name}, epoch {epoch}: {text(value)}")
            for epoch, value in values
            if value is not None and math.isfinite(value)
        ),
    )


def _four_digits(value: float) -> str:
    return f"{value:.4g}"


# --- student against teacher -------------------------------------------------------------------


def disagreements(report: RunFacts) -> Section:
    """The most frequent pairs of different classes that teacher and student predict."""
    found, agreed = report.results.disagreements or (), report.results.agreement
    is_labeled = any(row.teacher_right is not None for row in found)
    right = ("Teacher right", "Student right", "Neither") if is_labeled else ()
    rows = tuple(
        (
            Cell(row.teacher),
            Cell(row.student),
            Cell(integer_text(row.n)),
            *(Cell(integer_text(count)) for count in (_who_is_right(row) if is_labeled else ())),
        )
        for row in found[:_MOST_PAIRS]
    )
    note = ""
    if agreed:
        note = (
            f"Student and teacher predict different classes for"
            f" {integer_text(round((1 - agreed.top1) * agreed.n))} of {integer_text(agreed.n)}"
            " images; the table lists the most frequent pairs."
        )
    columns = ("Teacher predicts", "Student predicts", "Images", *right)
    chart = _pair_chart(found[:_MOST_PAIRS], is_labeled)
    return Section(
        "Disagreements with the teacher",
        note,
        Table(columns, rows),
        charts=(chart,) if found else (),
    )


def _pair_chart(found: Sequence[Disagreement], is_labeled: bool) -> Bars:
    names = tuple(f"{row.teacher} \N{RIGHTWARDS ARROW} {row.student}" for row in found)
    right = (Key("teacher right", 1), Key("student right", 2), Key("neither", 0))
    keys = right if is_labeled else (Key("images", 2),)
    counts = [_who_is_right(row) if is_labeled else (row.n,) for row in found]
    parts = tuple(zip(keys, zip(*counts, strict=True), strict=True)) if found else ()
    return Bars("Teacher's class \N{RIGHTWARDS ARROW} student's class", "images", names, parts)


def _who_is_right(row: Disagreement) -> tuple[int, int, int]:
    teacher, student = row.teacher_right or 0, row.student_right or 0
    return teacher, student, row.n - teacher - student


def doubts(report: RunFacts) -> Section:
    """The images with the largest divergence between student and teacher."""
    found = report.results.doubts or ()
    rows = tuple(
        (
            Cell(str(row.id)),
            Cell(row.label or NONE),
            Cell(row.teacher, percent_text(row.teacher_confidence, 0)),
            Cell(row.student, percent_text(row.student_confidence, 0)),
            Cell(f"{row.kl:.2f}"),
        )
        for row in found
    )
    pictures = (_picture(report, row) for row in found)
    return Section(
        "Images with the largest divergence",
        "The images with the largest KL(teacher || student) between the predictions.",
        Table(("Image", "Label", "Teacher predicts", "Student predicts", "KL, nats"), rows, False),
        pictures=tuple(picture for picture in pictures if picture),
    )


def _picture(report: RunFacts, row: Doubt) -> Picture | None:
    path = report.path / (row.thumbnail or "")
    if not path.is_file():
        return None
    label = [Cell("label", row.label)] if row.label is not None else []
    predictions = (
        Cell("teacher", f"{row.teacher}, {percent_text(row.teacher_confidence, 0)}"),
        Cell("student", f"{row.student}, {percent_text(row.student_confidence, 0)}"),
    )
    return Picture(path, (*label, *predictions))


# --- class by class ----------------------------------------------------------------------------


def classes(report: RunFacts) -> Section:
    """The accuracy of each class; of many classes, those where the student lost most."""
    found = report.results.classes or ()
    shown: Sequence[ClassAccuracy] = found
    which = ""
    if len(found) > _MOST_CLASSES:
        shown = sorted(found, key=_loss_of, reverse=True)[:_MOST_CLASSES]
        which = f"The {len(shown)} of {len(found)} classes on which the student lost most. "
    has_baseline = any(row.baseline for row in found)
    rows = tuple(
        (
            Cell(row.name, f"n = {integer_text(row.teacher.n)}"),
            share_cell(row.teacher),
            share_cell(row.student),
            *([share_cell(row.baseline)] if has_baseline else []),
            Cell(points_text(-_loss_of(row))),
        )
        for row in shown
    )
    note = (
        f"{which}Top-1 accuracy and 95 % interval of each class. Intervals are not corrected for"
        " the number of classes: with many classes, some differences are due to chance."
    )
    baseline = ["Baseline"] if has_baseline else []
    columns = ("Class", "Teacher", "Student", *baseline, "Student vs teacher")
    dots = (
        Line(
            _KEYS["teacher"],
            tuple(_point(row.teacher, f"teacher, {row.name}: ") for row in shown),
        ),
        Line(
            _KEYS["student"],
            tuple(_point(row.student, f"student, {row.name}: ") for row in shown),
        ),
    )
    chart = Dots("Top-1 by class", tuple(row.name for row in shown), dots)
    return Section("Class by class", note, Table(columns, rows), charts=(chart,) if found else ())


def _loss_of(row: ClassAccuracy) -> float:
    return row.teacher.top1 - row.student.top1


def _point(measured: Share, hint: str, x: float = 0) -> Point:
    text = f"{percent_text(measured.top1)} of {integer_text(measured.n)}"
    return Point(measured.top1, x, measured.low, measured.high, f"{hint}{text}")


# --- confidence --------------------------------------------------------------------------------


def calibration(report: RunFacts) -> Section:
    """The reliability diagram and the calibration error."""
    known = {name: m.calibration for name, m in report.models.items() if m.calibration}
    rows = tuple(
        (
            Cell(name.capitalize()),
            Cell(percent_text(measured.ece, 2)),
            Cell(percent_text(_mean(measured, lambda row: row.confidence))),
            Cell(percent_text(_mean(measured, lambda row: row.accuracy.top1))),
        )
        for name, measured in known.items()
    )
    lines = tuple(
        Line(_KEYS[name], tuple(_reliability(name, row) for row in known[name].bins))
        for name in ("teacher", "student")
        if name in known
    )
    title = "Accuracy of predictions by their confidence"
    chart = Lines(title, "confidence", "accuracy", lines, is_share=True, is_square=True)
    return Section(
        "Calibration",
        "Expected calibration error (ECE, Guo et al. 2017): the mean gap between confidence and"
        " accuracy over 15 bins of equal width. Confidence is the probability of the predicted"
        " class; a model whose confidence is above its accuracy is overconfident.",
        Table(("", "ECE", "Mean confidence", "Top-1"), rows),
        charts=(chart,) if lines else (),
    )


def _reliability(name: str, row: CalibrationBin) -> Point:
    hint = f"{name}, confidence {percent_text(row.confidence)}: "
    return _point(row.accuracy, hint, row.confidence)


def _mean(measured: Calibration, value: Callable[[CalibrationBin], float]) -> float:
    return sum(row.accuracy.n * value(row) for row in measured.bins) / measured.n


# --- time --------------------------------------------------------------------------------------


def latencies(report: RunFacts) -> Section:
    """The distribution of the measured calls, and how they were measured."""
    models = report.models
    by_runtime: dict[str, list[str]] = {}
    strips: dict[str, list[Strip]] = {}
    for name, runtime, batch, timing in _timings(models):
        if not timing.samples_ms:
            continue
        text = f"{timing.n} calls at batch {batch} after {timing.warmup} warm-up calls"
        where = f"{runtime_name(runtime)} on {threads_text(timing.threads, timing.device)}"
        known = by_runtime.setdefault(where, [])
        known += [text] if text not in known else []
        strips.setdefault(batch, []).append(_strip(name, runtime, timing))
    charts = tuple(
        Strips(f"Latency of one call, batch {batch} (ticks: median, p95)", "ms", tuple(rows))
        for batch, rows in strips.items()
    )
    lines = tuple(f"{where}: {', '.join(texts)}." for where, texts in by_runtime.items())
    note = "All timed calls. Teacher and student were timed in turns."
    return Section("Latency", note, lines=lines, charts=charts)


def _timings(models: Mapping[str, ModelResult]) -> Iterator[tuple[str, str, str, Timing]]:
    """Network, runtime, batch size and latency; runtime by runtime."""
    timed = {name: models[name].timings for name in ("teacher", "student") if name in models}
    for runtime in dict.fromkeys(runtime for own in timed.values() for runtime in own):
        for name, own in timed.items():
            for batch, timing in own.get(runtime, {}).items():
                yield name, runtime, batch, timing


def _strip(name: str, runtime: str, timing: Timing) -> Strip:
    label = f"{runtime_name(runtime)}, {name}: {ms_text(timing.median_ms)}"
    samples = timing.samples_ms or ()
    return Strip(label, _KEYS[name], samples, timing.median_ms, timing.p95_ms)
