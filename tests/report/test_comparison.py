"""Runs side by side: their numbers, tests and verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.report_runs import finished_run, results, share, unfinished_run, write_outputs
from scipy.stats import binomtest

from fitcompress.errors import RunError
from fitcompress.records.measurements import PairedTest
from fitcompress.report.comparison import Comparison, NotTested


def run_with(path: Path, right: list[bool], digest: str = "d1", **changes: Any) -> Path:
    """A finished run whose student has these evaluation images right."""
    data = {**results()["data"], "evaluation_digest": digest}
    student = {**results()["student"], "accuracy": share(sum(right), len(right))}
    run = finished_run(path, data=data, **{"student": student, **changes})
    write_outputs(run, right)
    return run.path


def answers(only_first: int, only_second: int, both: int = 50) -> tuple[list[bool], list[bool]]:
    first = [True] * only_first + [False] * only_second + [True] * both
    second = [False] * only_first + [True] * only_second + [True] * both
    return first, second


@pytest.fixture
def three(in_empty_folder: Path) -> Comparison:
    """The second is far better than the first, the third hardly."""
    first, second = answers(5, 40)
    third = [not right if k < 4 else right for k, right in enumerate(first)]
    for name, right in (("a", first), ("b", second), ("c", third)):
        run_with(Path("runs") / name, right)
    return Comparison.load([Path("runs/a"), Path("runs/b"), Path("runs/c")])


def test_each_run_is_tested_against_the_first_on_the_same_images(three: Comparison) -> None:
    second, third = three.tests
    assert isinstance(second, PairedTest) and isinstance(third, PairedTest)
    assert (second.only_first, second.only_second, second.n) == (5, 40, 95)
    assert second.p_value == pytest.approx(binomtest(5, 45).pvalue)
    assert (third.only_first, third.only_second) == (4, 0)


def test_p_values_are_corrected_for_their_number(three: Comparison) -> None:
    second, third = three.tests
    assert isinstance(second, PairedTest) and isinstance(third, PairedTest)
    assert second.p_holm == pytest.approx(2 * second.p_value)
    assert third.p_holm == pytest.approx(third.p_value)


def test_only_significant_differences_are_called_one(three: Comparison) -> None:
    text = " ".join(three.render().split())
    assert "Accuracy of b compared with a: higher (+36.8 points" in text
    assert "Accuracy of c compared with a: no significant difference (-4.2 points" in text


def test_a_difference_needs_a_significant_corrected_p_value(
    tmp_path: Path,
) -> None:
    first, better = answers(2, 11)
    paths = [run_with(tmp_path / "a", first)]
    paths += [run_with(tmp_path / name, better) for name in "bcd"]
    comparison = Comparison.load(paths)
    assert all(test.p_value < 0.05 < test.p_holm for test in comparison.tests)
    assert comparison.render().count("no significant difference") == 3


@pytest.mark.parametrize(
    ("changes", "digest", "reason"),
    [
        ({}, "d2", "measured on different images"),
        ({"data": {}}, "d1", "perhaps not measured on the same images"),
        ({"student": {**results()["student"], "accuracy": None}}, "d1", "no labels"),
    ],
    ids=["other images", "older run", "unlabelled"],
)
def test_the_reason_for_a_missing_test_is_shown(
    tmp_path: Path, changes: dict[str, Any], digest: str, reason: str
) -> None:
    first, second = answers(1, 40)
    one = run_with(tmp_path / "a", first)
    if "data" in changes:
        two = finished_run(tmp_path / "b", **changes).path
    else:
        two = run_with(tmp_path / "b", second, digest, **changes)
    comparison = Comparison.load([one, two])
    assert isinstance(comparison.tests[0], NotTested) and reason in comparison.tests[0].reason
    assert f"b compared with a: not tested ({reason}" in " ".join(comparison.render().split())
    assert "higher" not in comparison.render()


def test_every_form_shows_the_runs_side_by_side(three: Comparison) -> None:
    for form in ("text", "md", "html"):
        rendered = three.render(form)
        for words in ("Parameters", "51.2 k", "Top-1", "onnx", "Batch 32, ONNX Runtime"):
            assert words in rendered
    assert "<svg" in three.render("html")


def test_the_json_holds_runs_and_tests(three: Comparison) -> None:
    value = json.loads(three.render("json"))
    assert [run["name"] for run in value["runs"]] == ["a", "b", "c"]
    assert value["runs"][1]["student"]["accuracy"]["n"] == 95
    assert value["runs"][0]["exports"][0]["format"] == "onnx-int8"
    assert len(value["tests"]) == 2


def test_an_unfinished_run_is_compared_by_its_plan(tmp_path: Path) -> None:
    one = run_with(tmp_path / "a", [True])
    comparison = Comparison.load([one, unfinished_run(tmp_path / "b").path])
    text = " ".join(comparison.render().split())
    assert "! The run b is unfinished. Missing: stage 2 (distillation)" in text
    assert "51.2 k" in text


def test_recipes_are_compared_by_what_differs(tmp_path: Path) -> None:
    one, two = (run_with(tmp_path / name, [True]) for name in "ab")
    recipe = (two / "recipe.toml").read_text().replace("width_mult = 0.3", "width_mult = 0.5")
    (two / "recipe.toml").write_text(recipe)
    text = Comparison.load([one, two]).render("md")
    assert "| student.width\\_mult | 0.3 | 0.5 |" in text
    assert "depth\\_mult" not in text


def test_times_from_other_hardware_are_marked(tmp_path: Path) -> None:
    one, two = (run_with(tmp_path / name, [True]) for name in "ab")
    assert "different hardware" not in Comparison.load([one, two]).render()
    known = json.loads((two / "environment.json").read_text())
    (two / "environment.json").write_text(json.dumps({**known, "cpu": "another"}))
    assert "different hardware" in Comparison.load([one, two]).render()


def test_runs_with_the_same_name_are_shown_by_path(in_empty_folder: Path) -> None:
    paths = [run_with(Path(folder) / "run", [True]) for folder in ("x", "y")]
    assert Comparison.load(paths).names == (str(Path("x/run")), str(Path("y/run")))


@pytest.mark.parametrize("names", [["a"], ["a", "a"], []])
def test_one_run_cannot_be_compared(tmp_path: Path, names: list[str]) -> None:
    run_with(tmp_path / "a", [True])
    with pytest.raises(RunError) as caught:
        Comparison.load([tmp_path / name for name in names])
    assert caught.value.code == "too-few-runs"
