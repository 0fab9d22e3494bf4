"""The sentences at the top of a report. Pure.

Only significant differences are called better, worse, faster or slower.
"""

from __future__ import annotations

from collections.abc import Iterator

from fitcompress.evaluation.significance import SIGNIFICANT
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
from fitcompress.records.measurements import PairedTest, Share, Timing
from fitcompress.records.run_results import ModelResult
from fitcompress.report.document import Sentence
from fitcompress.report.run_facts import RunFacts

__all__ = ["accuracy_text", "evaluation_split", "headline"]


def headline(report: RunFacts) -> tuple[Sentence, ...]:
    """The summary in one sentence, warnings, and the details."""
    teacher, student = report.model("teacher"), report.model("student")
    sentences = [*_caveats(report)]
    if teacher and student:
        sentences = [*_summary(report, teacher, student), *sentences]
        sentences += _size_sentences(report.teacher_name, teacher, student)
        sentences += _accuracy_sentences(report, teacher, student)
        sentences += _speed_sentences(teacher, student)
        sentences += _baseline_sentences(report, student)
    return tuple(sentences)


def accuracy_text(measured: Share) -> str:
    """An accuracy with its interval.

    >>> accuracy_text(Share(top1=0.881, low=0.866, high=0.895, n=2000))
    '88.1 % (95 % interval 86.6 to 89.5)'
    """
    return f"{percent_text(measured.top1)} (95 % interval {_bounds(measured)})"


def evaluation_split(report: RunFacts) -> str:
    """The evaluation split by its name: "the test split"."""
    facts, data = report.results.headline_facts, report.results.data
    name = facts.evaluation_split or (data.evaluation_split if data else None)
    return f"the {name} split" if name else "the evaluation split"


def _bounds(measured: Share) -> str:
    return f"{100 * measured.low:.1f} to {100 * measured.high:.1f}"


def _summary(report: RunFacts, teacher: ModelResult, student: ModelResult) -> Iterator[Sentence]:
    """How much smaller and faster the student is, and how much accuracy it keeps."""
    if not report.is_finished:
        return
    size = ratio_text(teacher.params, student.params, "smaller", "larger")
    claims = ["as large" if size == "the same" else size]
    speeds = [
        (speed_text(*own["1"].speedup_over(other["1"])), runtime_name(runtime))
        for runtime, own, other in _runtimes(teacher, student)
        if "1" in own and "1" in other
    ]
    if speeds:
        (ratio, runtime), *others = speeds
        more = "".join(f" and {ratio} in {runtime}" for ratio, runtime in others)
        claims.append(f"{ratio} on one image in {runtime}{more}")
    text = f"Compared with {report.teacher_name}, the student is {', '.join(claims)}"
    kept = _kept(report, teacher, student)
    yield Sentence(f"{text}{',' if speeds else ''} and {kept}." if kept else f"{text}.")


def _kept(report: RunFacts, teacher: ModelResult, student: ModelResult) -> str:
    """The share of the accuracy that is kept; without labels, the agreement with the teacher."""
    own, other = student.accuracy, teacher.accuracy
    test, agreement = report.results.tests.get("teacher_student"), report.results.agreement
    if own and other and other.top1 and test:
        verdict = "" if test.p_value <= SIGNIFICANT else ", not significant"
        return (
            f"keeps {percent_text(own.top1 / other.top1)} of the teacher's accuracy (top-1"
            f" {percent_text(own.top1)} instead of {percent_text(other.top1)}; difference"
            f" {points_text(test.difference)}, 95 % interval {100 * test.low:+.1f} to"
            f" {100 * test.high:+.1f}{verdict})"
        )
    return (
        f"predicts the same class for {accuracy_text(agreement)} of the images" if agreement else ""
    )


_ByBatch = dict[str, Timing]


def _runtimes(
    teacher: ModelResult, student: ModelResult
) -> Iterator[tuple[str, _ByBatch, _ByBatch]]:
    """The runtimes in which both were timed, with the student's latencies and the teacher's."""
    for runtime, own in student.timings.items():
        if other := teacher.timings.get(runtime):
            yield runtime, own, other


def _caveats(report: RunFacts) -> Iterator[Sentence]:
    if not report.is_finished:
        yield Sentence(f"This run is unfinished. Missing: {', '.join(report.missing)}.", True)
    name, facts = report.teacher_name, report.results.headline_facts
    teacher = report.results.teacher
    weights, is_adapted = facts.teacher_weights, facts.adapted
    if teacher:
        weights = teacher.weights_from or weights
        is_adapted = is_adapted if teacher.adapted is None else teacher.adapted
    if weights == "random":
        trained = " and was trained only on this data" if is_adapted else ""
        yield Sentence(
            f"The teacher started from random weights: {name} had no pretrained weights{trained},"
            f" so these results say nothing about a pretrained {name}.",
            True,
        )
    elif is_adapted:
        yield Sentence(
            f"The teacher is a copy of {name} that was first fine-tuned on this data; the cost of"
            " fine-tuning is listed with the stages.",
            True,
        )


def _size_sentences(name: str, teacher: ModelResult, student: ModelResult) -> Iterator[Sentence]:
    parts = [
        f"{what} {ratio_text(before, after, 'fewer', 'more')} ({count_text(after)} instead of"
        f" {count_text(before)})"
        for what, before, after in (
            ("parameters", teacher.params, student.params),
            ("FLOPs", teacher.flops, student.flops),
        )
        if before and after
    ]
    before, after = teacher.depth, student.depth
    if before and after:
        ratio = ratio_text(before, after, "smaller", "larger")
        parts.append(f"depth {ratio} ({after} instead of {before} layers)")
    if parts:
        yield Sentence(f"Size compared with {name}: {', '.join(parts)}.")


def _accuracy_sentences(
    report: RunFacts, teacher: ModelResult, student: ModelResult
) -> Iterator[Sentence]:
    own, other, agreement = student.accuracy, teacher.accuracy, report.results.agreement
    if own:
        images = f"{integer_text(own.n)} images of {evaluation_split(report)}"
        text = f"On {images}, the student's top-1 accuracy is {accuracy_text(own)}"
        if other:
            text += f" and the teacher's {accuracy_text(other)}: {_difference(report, own, other)}"
        yield Sentence(f"{text}.")
    if agreement:
        share = percent_text(agreement.top1)
        yield Sentence(
            f"Student and teacher predict the same class for {share} of the images (95 % interval"
            f" {_bounds(agreement)})."
        )


def _difference(report: RunFacts, own: Share, other: Share) -> str:
    test = report.results.tests.get("teacher_student")
    details = [f"{percent_text(own.top1 / other.top1)} kept"] if other.top1 > 0 else []
    if test:
        verdict = "" if test.p_value <= SIGNIFICANT else "not significant, "
        details.append(f"{verdict}McNemar {p_text(test.p_value)}")
    points = points_text(own.top1 - other.top1)
    return f"{points} ({', '.join(details)})" if details else points


def _speed_sentences(teacher: ModelResult, student: ModelResult) -> Iterator[Sentence]:
    for runtime, batches, others in _runtimes(teacher, student):
        parts = [
            f"{speed_text(*own.speedup_over(other))} at batch {batch} ({ms_text(own.median_ms)}"
            f" instead of {ms_text(other.median_ms)})"
            for batch, own in batches.items()
            if (other := others.get(batch))
        ]
        if parts:
            yield Sentence(f"Latency in {runtime_name(runtime)}: {', '.join(parts)}.")


def _baseline_sentences(report: RunFacts, student: ModelResult) -> Iterator[Sentence]:
    baseline = report.model("baseline")
    own, other = student.accuracy, baseline.accuracy if baseline else None
    if own and other:
        test = report.results.tests.get("student_baseline")
        reached = f"The same student trained without a teacher reaches {accuracy_text(other)}"
        yield Sentence(f"{reached}: {_baseline_verdict(own.top1 - other.top1, test)}.")


def _baseline_verdict(difference: float, test: PairedTest | None) -> str:
    points = f"{points_text(difference)} with distillation"
    if test is None:
        return f"{points}, not tested"
    p_value = p_text(test.p_value)
    if test.p_value > SIGNIFICANT or difference == 0:
        return f"the teacher made no significant difference ({points}, McNemar {p_value})"
    verdict = "the teacher helped" if difference > 0 else "the teacher hurt"
    return f"{verdict} ({points}, McNemar {p_value}; one run each, so other seeds may differ)"
