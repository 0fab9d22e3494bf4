"""What training and answers show, part by part: curves, disagreements, classes, calibration, time.

Pure. Each function gives a section, empty where a run has nothing of the kind (an unfinished one,
unlabelled images, outputs that are no scores).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fitcompress.formatting import (
    integer_text,
    ms_text,
    percent_text,
    points_text,
    runtime_name,
    stage_title,
    threads_text,
)
from fitcompress.report.charts import Bars, Chart, Dots, Key, Line, Lines, Point, Strip, Strips
from fitcompress.report.document import Cell, Picture, Section, Table, in_words
from fitcompress.report.rows import share_cell
from fitcompress.report.run_report import Report

__all__ = ["calibration", "classes", "curves", "disagreements", "doubts", "latencies"]

_MOST_CLASSES = 20
_MOST_PAIRS = 10
_KEYS = {"teacher": Key("teacher", 1), "student": Key("student", 2), "baseline": Key("baseline", 3)}
_STAGE_COLORS = {"teacher": 1, "stage1": 2, "stage2": 2, "baseline": 3}


# --- learning ----------------------------------------------------------------------------------


def curves(report: Report) -> Section:
    """Held-out scores of all stages together, then the losses of each."""
    scores = (("top1", "Held-out top-1"), ("agreement", "Held-out agreement with the teacher"))
    charts: list[Chart] = [_score_chart(report, key, title) for key, title in scores]
    charts += [_loss_chart(stage, rows) for stage, rows in report.curves.items()]
    note = "Held out is a seeded tenth of the training images; training chooses by it."
    return Section("Learning curves", note, charts=tuple(c for c in charts if c.legend))


def _score_chart(report: Report, key: str, title: str) -> Lines:
    lines = (
        _curve(Key(stage_title(stage), _STAGE_COLORS.get(stage, 4)), rows, "held_out", key, True)
        for stage, rows in report.curves.items()
    )
    known = tuple(line for line in lines if line.points)
    return Lines(title, "epoch", "", known, is_share=True)


def _loss_chart(stage: str, rows: Sequence[Mapping[str, Any]]) -> Lines:
    color = _STAGE_COLORS.get(stage, 4)
    lines = (
        _curve(Key("training", color), rows, "losses", "loss"),
        _curve(Key("held out", color, is_dashed=True), rows, "held_out", "loss"),
    )
    loss = "hint loss" if stage == "stage1" else "loss"
    known = tuple(line for line in lines if line.points)
    return Lines(f"{stage_title(stage)}, {loss}", "epoch", "", known)


def _curve(
    key: Key, rows: Sequence[Mapping[str, Any]], part: str, name: str, is_share: bool = False
) -> Line:
    values = ((row["epoch"], row[part].get(name)) for row in rows)
    return Line(
        key,
        tuple(
            Point(value, epoch, hint=f"{key.name}, epoch {epoch}: {_number(value, is_share)}")
            for epoch, value in values
            if value is not None and math.isfinite(value)
        ),
    )


def _number(value: float, is_share: bool) -> str:
    return percent_text(value) if is_share else f"{value:.4g}"


# --- student against teacher -------------------------------------------------------------------


def disagreements(report: Report) -> Section:
    """The pairs of classes that student and teacher most often name for the same image."""
    found = report.results.get("disagreements") or ()
    is_labeled = any(row["teacher_right"] is not None for row in found)
    right = ("Teacher right", "Student right", "Neither") if is_labeled else ()
    rows = tuple(
        (
            Cell(row["teacher"]),
            Cell(row["student"]),
            Cell(integer_text(row["n"])),
            *(Cell(integer_text(count)) for count in (_who_is_right(row) if is_labeled else ())),
        )
        for row in found[:_MOST_PAIRS]
    )
    agreed = report.results.get("agreement") or {}
    num_differing = round((1 - agreed.get("top1", 1)) * agreed.get("n", 0))
    note = (
        f"They name different classes for {integer_text(num_differing)} of"
        f" {integer_text(agreed.get('n', 0))} images; the most frequent pairs."
    )
    columns = ("Teacher says", "Student says", "Images", *right)
    chart = _pair_chart(found[:_MOST_PAIRS], is_labeled)
    return Section(
        "Where the student leaves the teacher",
        note,
        Table(columns, rows),
        charts=(chart,) if found else (),
    )


def _pair_chart(found: Sequence[Mapping[str, Any]], is_labeled: bool) -> Bars:
    names = tuple(f"{row['teacher']} \N{RIGHTWARDS ARROW} {row['student']}" for row in found)
    right = (Key("teacher right", 1), Key("student right", 2), Key("neither", 0))
    keys = right if is_labeled else (Key("images", 2),)
    counts = [_who_is_right(row) if is_labeled else (row["n"],) for row in found]
    parts = tuple(zip(keys, zip(*counts, strict=True), strict=True)) if found else ()
    return Bars("Teacher's class \N{RIGHTWARDS ARROW} student's class", "images", names, parts)


def _who_is_right(row: Mapping[str, Any]) -> tuple[int, int, int]:
    teacher, student = row["teacher_right"], row["student_right"]
    return teacher, student, row["n"] - teacher - student


def doubts(report: Report) -> Section:
    """The images that the student sees most differently from its teacher."""
    found = report.results.get("doubts") or ()
    rows = tuple(
        (
            Cell(str(row["id"])),
            Cell(in_words(row["label"], str)),
            Cell(row["teacher"], percent_text(row["teacher_confidence"], 0)),
            Cell(row["student"], percent_text(row["student_confidence"], 0)),
            Cell(f"{row['kl']:.2f}"),
        )
        for row in found
    )
    pictures = (_picture(report, row) for row in found)
    return Section(
        "Images most in doubt",
        "Where the student's answer is furthest from the teacher's, by KL(teacher || student).",
        Table(("Image", "Label", "Teacher says", "Student says", "KL, nats"), rows, False),
        pictures=tuple(picture for picture in pictures if picture),
    )


def _picture(report: Report, row: Mapping[str, Any]) -> Picture | None:
    path = report.path / row["thumbnail"]
    if not path.is_file():
        return None
    said = [
        Cell(name, f"{row[name]}, {percent_text(row[f'{name}_confidence'], 0)}")
        for name in ("teacher", "student")
    ]
    label = [Cell("label", row["label"])] if row["label"] is not None else []
    return Picture(path, (*label, *said))


# --- class by class ----------------------------------------------------------------------------


def classes(report: Report) -> Section:
    """Each class's accuracy; of many, those that the student lost most of."""
    found = report.results.get("classes") or ()
    shown = sorted(found, key=_lost, reverse=True)[:_MOST_CLASSES]
    shown = list(found) if len(found) <= _MOST_CLASSES else shown
    networks = [name for name in _KEYS if found and name in found[0]]
    rows = tuple(
        (
            Cell(row["name"], f"n = {integer_text(row['teacher']['n'])}"),
            *(share_cell(row[name]) for name in networks),
            Cell(points_text(-_lost(row))),
        )
        for row in shown
    )
    which = f"The {len(shown)} of {len(found)} classes where the student lost most. "
    note = (
        f"{which if len(shown) < len(found) else ''}Top-1 of each class with the 95 % interval of"
        " that class alone; among many classes some differences are chance."
    )
    columns = ("Class", *(name.capitalize() for name in networks), "Student vs teacher")
    dots = tuple(
        Line(
            _KEYS[name],
            tuple(_point(row[name], f"{name}, {row['name']}: ") for row in shown),
        )
        for name in ("teacher", "student")
    )
    chart = Dots("Top-1 by class", tuple(row["name"] for row in shown), dots)
    return Section("Class by class", note, Table(columns, rows), charts=(chart,) if found else ())


def _lost(row: Mapping[str, Any]) -> float:
    lost: float = row["teacher"]["top1"] - row["student"]["top1"]
    return lost


def _point(measured: Mapping[str, Any], hint: str, x: float = 0) -> Point:
    words = f"{percent_text(measured['top1'])} of {integer_text(measured['n'])}"
    return Point(measured["top1"], x, measured["low"], measured["high"], f"{hint}{words}")


# --- confidence --------------------------------------------------------------------------------


def calibration(report: Report) -> Section:
    """Whether confidence is to be trusted: the reliability plot, and its errors in one number."""
    known = {name: m["calibration"] for name, m in report.models.items() if m.get("calibration")}
    rows = tuple(
        (
            Cell(name.capitalize()),
            Cell(percent_text(measured["ece"], 2)),
            Cell(percent_text(_mean(measured, lambda row: row["confidence"]))),
            Cell(percent_text(_mean(measured, lambda row: row["accuracy"]["top1"]))),
        )
        for name, measured in known.items()
    )
    lines = tuple(
        Line(_KEYS[name], tuple(_reliability(name, row) for row in known[name]["bins"]))
        for name in ("teacher", "student")
        if name in known
    )
    title = "Accuracy of the answers given with each confidence"
    chart = Lines(title, "confidence", "accuracy", lines, is_share=True, is_square=True)
    return Section(
        "Calibration",
        "Expected calibration error (Guo et al. 2017): the mean gap between confidence and accuracy"
        " over 15 bins of equal width. Confidence is the probability given to the named class;"
        " above the accuracy it is too sure.",
        Table(("", "ECE", "Mean confidence", "Top-1"), rows),
        charts=(chart,) if lines else (),
    )


def _reliability(name: str, row: Mapping[str, Any]) -> Point:
    hint = f"{name}, confidence {percent_text(row['confidence'])}: "
    return _point(row["accuracy"], hint, row["confidence"])


def _mean(measured: Mapping[str, Any], value: Any) -> float:
    total: float = sum(row["accuracy"]["n"] * value(row) for row in measured["bins"])
    return total / float(measured["n"])


# --- time --------------------------------------------------------------------------------------


def latencies(report: Report) -> Section:
    """How the measured calls are spread, and how they were measured."""
    models = {name: report.models.get(name, {}) for name in ("teacher", "student")}
    by_runtime: dict[str, list[str]] = {}
    strips: dict[str, list[Strip]] = {}
    for name, runtime, batch, timing in _timings(models):
        if not timing.get("samples_ms"):
            continue
        words = f"{timing['n']} calls of batch {batch} after {timing['warmup']} to warm up"
        known = by_runtime.setdefault(f"{runtime_name(runtime)} on {threads_text(timing)}", [])
        known += [words] if words not in known else []
        strips.setdefault(batch, []).append(_strip(name, runtime, timing))
    charts = tuple(
        Strips(f"Time of one call, batch {batch} (ticks: median, p95)", "ms", tuple(rows))
        for batch, rows in strips.items()
    )
    lines = tuple(f"{runtime}: {', '.join(words)}." for runtime, words in by_runtime.items())
    note = "Every call that was timed; teacher and student took turns."
    return Section("Latency", note, lines=lines, charts=charts)


def _timings(
    models: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    runtimes = dict.fromkeys(r for model in models.values() for r in model.get("latency", {}))
    for runtime in runtimes:
        for name, model in models.items():
            for batch, timing in model.get("latency", {}).get(runtime, {}).items():
                yield name, runtime, batch, timing


def _strip(name: str, runtime: str, timing: Mapping[str, Any]) -> Strip:
    values, median, p95 = timing["samples_ms"], timing["median_ms"], timing["p95_ms"]
    label = f"{runtime_name(runtime)}, {name}: {ms_text(median)}"
    return Strip(label, _KEYS[name], tuple(values), median, p95)
