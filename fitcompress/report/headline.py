"""The sentences on top of the report. Pure.

Nothing is called better, faster or smaller that was not shown to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fitcompress.formatting import (
    count_text,
    integer_text,
    ms_text,
    p_text,
    percent_text,
    points_text,
    ratio_text,
    runtime_name,
    speed_text,
)
from fitcompress.report.document import Sentence
from fitcompress.report.run_report import Report

__all__ = ["SIGNIFICANT", "accuracy_text", "evaluation_split", "headline"]

SIGNIFICANT = 0.05


def headline(report: Report) -> tuple[Sentence, ...]:
    """What to know when one reads nothing else: all in one sentence, what warns of it, the rest."""
    teacher, student = report.model("teacher"), report.model("student")
    sentences = [*_caveats(report)]
    if teacher and student:
        sentences = [*_summary(report, teacher, student), *sentences]
        sentences += _size_sentences(report.teacher_name, teacher, student)
        sentences += _accuracy_sentences(report, teacher, student)
        sentences += _speed_sentences(teacher, student)
        sentences += _baseline_sentences(report, student)
    return tuple(sentences)


def accuracy_text(measured: Mapping[str, Any]) -> str:
    """An accuracy with its interval.

    >>> accuracy_text({"top1": 0.881, "low": 0.866, "high": 0.895, "n": 2000})
    '88.1 % (95 % interval 86.6 to 89.5)'
    """
    low, high = 100 * measured["low"], 100 * measured["high"]
    return f"{percent_text(measured['top1'])} (95 % interval {low:.1f} to {high:.1f})"


def evaluation_split(report: Report) -> str:
    """The name of the split that was measured on."""
    places = (report.results.get("headline_facts"), report.results.get("data"))
    for place in (place for place in places if isinstance(place, Mapping)):
        name = place.get("evaluation_split") or place.get("evaluation")
        if name:
            return str(name)
    return "the evaluation split"


def _summary(
    report: Report, teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> Iterator[Sentence]:
    """How much smaller, how much faster, how much accuracy was kept, in one sentence."""
    if not report.is_finished:
        return
    size = ratio_text(teacher["params"], student["params"], "smaller", "larger")
    is_what = ["as large" if size == "the same" else size]
    faster = [
        (speed_text(own["1"], other["1"]), runtime_name(runtime))
        for runtime, own, other in _runtimes(teacher, student)
        if "1" in own and "1" in other
    ]
    if faster:
        (ratio, runtime), *others = faster
        more = "".join(f" and {ratio} in {runtime}" for ratio, runtime in others)
        is_what.append(f"{ratio} on one image in {runtime}{more}")
    text = f"Against {report.teacher_name} the student is {', '.join(is_what)}"
    kept = _kept(report, teacher, student)
    yield Sentence(f"{text}{',' if faster else ''} and {kept}." if kept else f"{text}.")


def _kept(report: Report, teacher: Mapping[str, Any], student: Mapping[str, Any]) -> str:
    """What was kept of the accuracy, or without labels of the answers; with its interval."""
    own, other = student.get("accuracy"), teacher.get("accuracy")
    test, agreement = _test(report, "teacher_student"), report.results.get("agreement")
    if own and other and other["top1"] and test:
        is_shown = "" if test["p_value"] <= SIGNIFICANT else ", so a difference is not shown"
        return (
            f"keeps {percent_text(own['top1'] / other['top1'])} of its accuracy (top-1"
            f" {percent_text(own['top1'])} instead of {percent_text(other['top1'])}; difference"
            f" {points_text(test['difference'])}, 95 % interval {100 * test['low']:+.1f} to"
            f" {100 * test['high']:+.1f}{is_shown})"
        )
    return f"names the same class on {accuracy_text(agreement)} of the images" if agreement else ""


def _test(report: Report, name: str) -> Mapping[str, Any] | None:
    """A test of two networks, where there were labels."""
    found: Mapping[str, Any] | None = (report.results.get("tests") or {}).get(name)
    return found


def _runtimes(
    teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each runtime that both were timed in, with the student's times and the teacher's."""
    for runtime, own in student["latency"].items():
        if other := teacher["latency"].get(runtime):
            yield runtime, own, other


def _caveats(report: Report) -> Iterator[Sentence]:
    if not report.is_finished:
        yield Sentence(f"This run is unfinished. Missing: {', '.join(report.missing)}.", True)
    name, teacher = report.teacher_name, report.results.get("teacher") or {}
    facts = report.results.get("headline_facts") or {}
    weights = teacher.get("weights_from") or facts.get("teacher_weights")
    is_adapted = teacher.get("adapted", facts.get("adapted", False))
    if weights == "random":
        trained = " and was trained on this data only" if is_adapted else ""
        yield Sentence(
            f"Teacher started from random weights: {name} had no pretrained weights{trained}, "
            "so these numbers say nothing about the pretrained one.",
            True,
        )
    elif is_adapted:
        yield Sentence(
            f"The teacher is a copy of {name} that was first adapted to this data; "
            "its cost is listed with the stages.",
            True,
        )


def _size_sentences(
    name: str, teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> Iterator[Sentence]:
    parts = []
    for key, what in (("params", "parameters"), ("flops", "FLOPs")):
        before, after = teacher.get(key), student.get(key)
        if before and after:
            ratio = ratio_text(before, after, "fewer", "more")
            parts.append(f"{what} {ratio} ({count_text(after)} instead of {count_text(before)})")
    before, after = teacher.get("depth"), student.get("depth")
    if before and after:
        parts.append(f"depth {ratio_text(before, after)} ({after} instead of {before} layers)")
    if parts:
        yield Sentence(f"Student against {name}: {', '.join(parts)}.")


def _accuracy_sentences(
    report: Report, teacher: Mapping[str, Any], student: Mapping[str, Any]
) -> Iterator[Sentence]:
    own, other = student.get("accuracy"), teacher.get("accuracy")
    if own:
        where = f"{integer_text(own['n'])} images of {evaluation_split(report)}"
        text = f"On {where} the student's top-1 is {accuracy_text(own)}"
        if other:
            text += (
                f", the teacher's {accuracy_text(other)}: {_against_teacher(report, own, other)}"
            )
        yield Sentence(f"{text}.")
    agreement = report.results.get("agreement")
    if agreement:
        low, high = 100 * agreement["low"], 100 * agreement["high"]
        share = percent_text(agreement["top1"])
        yield Sentence(
            f"Student and teacher name the same class on {share} ({low:.1f} to {high:.1f})."
        )


def _against_teacher(report: Report, own: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    difference = own["top1"] - other["top1"]
    test = _test(report, "teacher_student")
    kept = f"{percent_text(own['top1'] / other['top1'])} of it kept" if other["top1"] > 0 else ""
    if test and test["p_value"] > SIGNIFICANT:
        shown = f"a difference is not shown (McNemar {p_text(test['p_value'])})"
    else:
        shown = f"McNemar {p_text(test['p_value'])}" if test else ""
    return ", ".join(part for part in (points_text(difference), kept, shown) if part)


def _speed_sentences(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> Iterator[Sentence]:
    for runtime, batches, others in _runtimes(teacher, student):
        parts = []
        for batch, own in batches.items():
            if other := others.get(batch):
                ratio = speed_text(own, other)
                instead = f"{ms_text(own['median_ms'])} instead of {ms_text(other['median_ms'])}"
                parts.append(f"batch {batch} {ratio} ({instead})")
        if parts:
            yield Sentence(f"Measured in {runtime_name(runtime)}: {', '.join(parts)}.")


def _baseline_sentences(report: Report, student: Mapping[str, Any]) -> Iterator[Sentence]:
    baseline = report.model("baseline") or {}
    own, other = student.get("accuracy"), baseline.get("accuracy")
    if not own or not other:
        return
    test = _test(report, "student_baseline")
    difference = own["top1"] - other["top1"]
    measured = f"The same student trained without a teacher reaches {accuracy_text(other)}"
    yield Sentence(f"{measured}: {_baseline_verdict(difference, test)}.")


def _baseline_verdict(difference: float, test: Mapping[str, Any] | None) -> str:
    points = f"{points_text(difference)} for the distilled one"
    if test is None:
        return f"{points}, not tested"
    p_value = p_text(test["p_value"])
    if test["p_value"] > SIGNIFICANT or difference == 0:
        return f"that the teacher helped is not shown ({points}, McNemar {p_value})"
    verdict = "the teacher helped" if difference > 0 else "the teacher did not help, it hurt"
    return f"{verdict} ({points}, McNemar {p_value}; one run of each, other seeds may differ)"
