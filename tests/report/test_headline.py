"""The headline claims only significant differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.report_runs import PLAN, finished_run, results, share, timing, unfinished_run

from fitcompress.report.headline import headline
from fitcompress.report.run_report import Report


def texts(path: Path, **changes: Any) -> list[str]:
    return [sentence.text for sentence in headline(Report.load(finished_run(path, **changes)))]


def with_test(name: str, p_value: float) -> dict[str, Any]:
    tests = results()["tests"]
    return {"tests": {**tests, name: {**tests[name], "p_value": p_value}}}


def test_the_first_sentence_says_how_much_smaller_faster_and_as_good(tmp_path: Path) -> None:
    assert texts(tmp_path)[0] == (
        "Compared with resnet20, the student is 5.3x smaller, 1.6x slower on one image in PyTorch"
        " and 1.3x faster in ONNX Runtime, and keeps 97.7 % of the teacher's accuracy (top-1 89.4 %"
        " instead of 91.5 %; difference -2.1 points, 95 % interval -3.3 to -0.9)."
    )


def test_the_first_sentence_claims_no_insignificant_difference(tmp_path: Path) -> None:
    student = results()["student"]
    unclear = {**timing(3.6, 1.2), "speedup_range": [0.9, 1.3]}
    changed = {**student, "latency_ms": {"torch": {"1": unclear}}}
    first = texts(tmp_path, student=changed, **with_test("teacher_student", 0.3))[0]
    assert "5.3x smaller, about as fast on one image in PyTorch, and keeps" in first
    assert first.endswith("95 % interval -3.3 to -0.9, not significant).")


def test_without_labels_the_first_sentence_reports_agreement(tmp_path: Path) -> None:
    changed = {name: {**results()[name], "accuracy": None} for name in ("teacher", "student")}
    tests = {"teacher_student": None}
    assert (
        "and predicts the same class for 92.5 % (95 % interval 91.3 to 93.6) of the images"
        in (texts(tmp_path, **changed, tests=tests)[0])
    )


def test_without_class_scores_the_summary_is_size_and_speed(tmp_path: Path) -> None:
    changed = {name: {**results()[name], "accuracy": None} for name in ("teacher", "student")}
    first = texts(tmp_path, **changed, tests={}, agreement=None)[0]
    assert first.endswith("1.3x faster in ONNX Runtime.")


def test_an_unfinished_run_has_no_summary(tmp_path: Path) -> None:
    first = headline(Report.load(unfinished_run(tmp_path / "run")))[0]
    assert first.is_warning
    assert first.text.startswith("This run is unfinished")


def test_sizes_and_accuracy_have_intervals_and_counts(tmp_path: Path) -> None:
    joined = " ".join(texts(tmp_path))
    assert "parameters 5.3x fewer (51.2 k instead of 272 k)" in joined
    assert "depth 2.0x larger (40 instead of 20 layers)" in joined
    assert (
        "On 2,000 images of the test split, the student's top-1 accuracy is 89.4 % (95 % interval"
        " 88.0 to 90.7)" in joined
    )
    assert "-2.1 points (97.7 % kept, McNemar p < 0.001)" in joined


def test_slower_is_called_slower(tmp_path: Path) -> None:
    (torch_line,) = (line for line in texts(tmp_path) if "Latency in PyTorch" in line)
    assert "1.6x slower at batch 1 (3.60 ms instead of 2.20 ms)" in torch_line
    assert "1.8x faster at batch 32" in torch_line


def test_a_larger_student_is_called_larger(tmp_path: Path) -> None:
    student = {**results()["student"], "params": 2 * PLAN["teacher"]["params"]}
    assert "parameters 2.0x more" in " ".join(texts(tmp_path, student=student))


@pytest.mark.parametrize(
    ("num_correct", "p_value", "expected"),
    [
        (1741, 0.012, "the teacher helped (+2.3 points"),
        (1780, 0.4, "the teacher made no significant difference (+0.4 points"),
        (1830, 0.001, "the teacher hurt (-2.1 points"),
    ],
    ids=["better", "not significant", "worse"],
)
def test_the_baseline_decides_whether_the_teacher_helped(
    tmp_path: Path, num_correct: int, p_value: float, expected: str
) -> None:
    baseline = {**results()["baseline"], "accuracy": share(num_correct, 2000)}
    lines = texts(tmp_path, baseline=baseline, **with_test("student_baseline", p_value))
    assert expected in lines[-1]


def test_an_insignificant_difference_is_called_so(tmp_path: Path) -> None:
    lines = texts(tmp_path, **with_test("teacher_student", 0.3))
    assert any("not significant, McNemar p = 0.3" in line for line in lines)


def test_random_teacher_weights_come_right_after_the_first_sentence(tmp_path: Path) -> None:
    teacher = {**results()["teacher"], "weights_from": "random"}
    warning = headline(Report.load(finished_run(tmp_path, teacher=teacher)))[1]
    assert warning.is_warning
    assert warning.text.startswith("The teacher started from random weights: resnet20")


def test_a_pretrained_teacher_that_was_not_adapted_gets_no_warning(tmp_path: Path) -> None:
    teacher = {**results()["teacher"], "adapted": False}
    assert not any(
        s.is_warning for s in headline(Report.load(finished_run(tmp_path, teacher=teacher)))
    )


def test_without_labels_only_agreement_is_reported(tmp_path: Path) -> None:
    changed = {
        name: {**results()[name], "accuracy": None} for name in ("teacher", "student", "baseline")
    }
    joined = " ".join(texts(tmp_path, **changed, tests={"teacher_student": None}))
    assert "top-1" not in joined
    assert "predict the same class for 92.5 %" in joined
