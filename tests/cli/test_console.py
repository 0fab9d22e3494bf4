"""Views of the console, plain and 100 columns wide, as when piped. Whole screens are in golden/."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.fakes import LAYERS, PLAN

from fitcompress.cli import console


def screen(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed to stdout, line by line without blanks at the ends."""
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line.rstrip() for line in captured.out.splitlines()]


def test_a_plan_without_hint_pairs(capsys):
    console.show_plan({**PLAN, "pairs": [], "stages": [], "frozen": [], "notices": []})

    assert screen(capsys)[-1] == "no hint pairs"


def test_a_plan_marks_hints_that_are_not_trained(capsys):
    console.show_plan({**PLAN, "learns_hints": False})

    assert "Hints (not trained; enable with --hint-epochs)" in screen(capsys)


@pytest.mark.parametrize(
    ("measured", "lines"),
    [
        (
            {"accuracy": {"top1": 0.8812, "low": 0.87, "high": 0.89, "n": 10000}, "split": "test"},
            ["accuracy: 88.1 % (87.0 % to 89.0 %, n = 10,000)", "split: test"],
        ),
        ({"accuracy": None, "confusion": [[1]]}, ["accuracy: unknown (no labels)"]),
    ],
    ids=["labeled", "unlabeled"],
)
def test_an_evaluation_is_its_accuracy_with_the_interval(capsys, measured, lines):
    console.show_eval(measured)

    assert screen(capsys) == lines


@pytest.mark.parametrize(
    ("show", "value"),
    [
        (console.show_plan, PLAN),
        (console.show_layers, LAYERS),
        (console.show_exports, [{"format": "onnx"}]),
        (console.show_eval, {"accuracy": None}),
    ],
    ids=["plan", "layers", "exports", "eval"],
)
def test_as_json_a_view_prints_its_value(capsys, show, value):
    show(value, as_json=True)

    assert json.loads(capsys.readouterr().out) == value


def test_json_has_null_for_numbers_that_are_not_finite_and_text_for_unknown_types(capsys):
    console.show_json({"a": float("nan"), "b": (float("inf"), 1.5), "c": Path("x/y"), "d": 1j})

    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x/y",
        "d": "1j",
    }


def test_a_model_folder_is_named(capsys):
    console.show_model_folder(Path("teachers/r18"))
    console.show_model_folder(Path("t"), as_json=True)

    assert screen(capsys) == ["model folder: teachers/r18", "{", '  "path": "t"', "}"]


def test_errors_and_notices_go_to_stderr_on_one_line_each(capsys):
    console.show_error("reading 'a[0]':\n it is damaged", "copy\nit")
    console.show_notice("x" * 200)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: reading 'a[0]': it is damaged\nhint: copy it\nnote: {'x' * 200}\n"
    )


def test_in_a_terminal_an_error_is_red(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")

    console.show_error("no")

    assert capsys.readouterr().err == "\x1b[1;31merror: no\x1b[0m\n"


def test_without_a_terminal_lines_are_100_wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")

    assert console.output_console().width == 100
