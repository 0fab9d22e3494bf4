"""Whole screens of the console, 100 columns wide and plain, as they are when piped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitcompress.cli import console

PLAN = {
    "teacher": {"params": 11_181_642, "macs": 1_814_073_344, "flops": 3_628_146_688, "depth": 18},
    "student": {"params": 2_134_210, "macs": 352_321_536, "flops": 704_643_072, "depth": 36},
    "stages": [
        {
            "name": "stage 1",
            "teacher": {
                "blocks": 2,
                "width": [64, 56, 56],
                "params": 157_504,
                "first": "layer1.0",
                "last": "layer1.1",
            },
            "student": {
                "blocks": 5,
                "width": [24, 56, 56],
                "params": 39_380,
                "first": "layer1.0",
                "last": "layer1.4",
            },
        },
        {
            "name": "stage 2",
            "teacher": None,
            "student": {"blocks": 1, "width": [10], "params": 250, "first": "fc", "last": "fc"},
        },
    ],
    "pairs": [
        {
            "hint": "layer2",
            "guided": "layer2",
            "hint_shape": [128, 28, 28],
            "guided_shape": [40, 28, 28],
            "regressor": "conv 1x1",
        }
    ],
    "learns_hints": True,
    "frozen": [
        {"reason": "no rule for x", "sizes": [3, 16], "tensors": ["a.weight", "b.weight"]},
        {"reason": "an index", "sizes": [49], "tensors": []},
    ],
    "notices": ["random weights"],
}

LAYERS = [
    {
        "name": "layer1[0]",
        "kind": "BasicBlock",
        "shape": [64, 56, 56],
        "depth_share": 0.25,
        "candidate": True,
    },
    {"name": "pool", "kind": "MaxPool2d", "shape": [64], "depth_share": None, "candidate": False},
]


def screen(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was printed to stdout, line by line without blanks at the ends."""
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line.rstrip() for line in captured.out.splitlines()]


def test_a_plan_is_sizes_stages_hints_and_what_is_frozen(capsys):
    console.show_plan(PLAN)

    assert screen(capsys) == [
        "Plan",
        "",
        "               teacher   student   ratio",
        " ────────────────────────────────────────",
        "  parameters    11.2 M    2.13 M   0.191",
        "  MACs          1.81 G     352 M   0.194",
        "  FLOPs         3.63 G     705 M   0.194",
        "  depth             18        36       2",
        "",
        "Stages",
        "",
        "  student layers         blocks   shape                               parameters",
        " ────────────────────────────────────────────────────────────────────────────────",
        "  layer1.0 to layer1.4   2 -> 5   64 x 56 x 56 -> 24 x 56 x 56   158 k -> 39.4 k",
        "  fc                          1   10                                         250",
        "",
        "Hints",
        "",
        "  hint     guided   shapes                          regressor",
        " ─────────────────────────────────────────────────────────────",
        "  layer2   layer2   128 x 28 x 28 <- 40 x 28 x 28   conv 1x1",
        "",
        "frozen: 3 x 16 (no rule for x), in a.weight and 1 more",
        "frozen: 49 (an index), in no weight",
        "note: random weights",
    ]


def test_a_plan_without_hints_says_so(capsys):
    console.show_plan({**PLAN, "pairs": [], "stages": [], "frozen": [], "notices": []})

    assert screen(capsys)[-1] == "no hint pair"


def test_a_plan_says_when_its_hints_are_not_learnt(capsys):
    console.show_plan({**PLAN, "learns_hints": False})

    assert any("if they are asked for (--hint-epochs)" in line for line in screen(capsys))


def test_layers_are_a_table_and_their_names_are_no_markup(capsys):
    console.show_layers(LAYERS)

    assert screen(capsys) == [
        "Layers",
        "",
        "  layer       kind         shape          depth   hint candidate",
        " ────────────────────────────────────────────────────────────────",
        "  layer1[0]   BasicBlock   64 x 56 x 56    25 %   yes",
        "  pool        MaxPool2d    64",
        "",
    ]


def test_exports_are_shown_with_their_checks(capsys):
    console.show_exports(
        [
            {
                "format": "onnx",
                "path": "runs/x/exports/student.onnx",
                "size_bytes": 1_500_000,
                "max_abs_diff": 2.4e-7,
                "top1_agreement": 1.0,
                "accuracy": {"top1": 0.5304, "low": 0.5, "high": 0.6, "n": 100},
                "remark": "1 of 9 layers in float",
                "latency": {"1": {"speedup": 1.5, "speedup_range": [1.4, 1.6]}},
            }
        ]
    )

    assert screen(capsys) == [
        "Exports",
        "",
        "  format   file                              size   difference   same top-1    top-1",
        " ────────────────────────────────────────────────────────────────────────────────────",
        "  onnx     runs/x/exports/student.onnx   1.43 MiB      2.4e-07      100.0 %   53.0 %",
        "",
        "onnx: 1 of 9 layers in float",
        "onnx beside float32: batch 1: 1.5x faster",
    ]


@pytest.mark.parametrize(
    ("measured", "lines"),
    [
        (
            {"accuracy": {"top1": 0.8812, "low": 0.87, "high": 0.89, "n": 10000}, "split": "test"},
            ["accuracy: 88.1 % (87.0 % to 89.0 %, n = 10,000)", "split: test"],
        ),
        ({"accuracy": None, "confusion": [[1]]}, ["accuracy: unknown (no labels)"]),
    ],
    ids=["labelled", "unlabelled"],
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


def test_json_has_null_for_what_it_has_no_word_for(capsys):
    console.show_json({"a": float("nan"), "b": (float("inf"), 1.5), "c": Path("x/y"), "d": True})

    assert json.loads(capsys.readouterr().out) == {
        "a": None,
        "b": [None, 1.5],
        "c": "x/y",
        "d": True,
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
