"""The exception tree, near misses, and the codes of errors and notices."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from fitcompress import errors
from fitcompress.errors import FitcompressError, near_misses

PACKAGE = Path(errors.__file__).parent
CLASSES = [value for name in errors.__all__ if inspect.isclass(value := getattr(errors, name))]
CODED = {kind.__name__ for kind in CLASSES} | {"Notice"}
SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+){0,4}")


# --- the tree ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_message_a_code_advice_and_facts(kind):
    error = kind("opening 'x': damaged", code="file-damaged", advice="Copy it again.", path="x")

    assert (str(error), error.message) == ("opening 'x': damaged",) * 2
    assert (error.code, error.advice, error.facts) == (
        "file-damaged",
        "Copy it again.",
        {"path": "x"},
    )
    assert json.loads(json.dumps(error.to_dict())) == {
        "code": "file-damaged",
        "message": "opening 'x': damaged",
        "advice": "Copy it again.",
        "path": "x",
    }


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_as_the_base_class(kind):
    assert issubclass(kind, FitcompressError)


@pytest.mark.parametrize("advice", [None, "Try again."])
def test_a_reworded_error_keeps_its_type_code_and_facts(advice):
    error = errors.ObstacleError("short", code="call-unsupported", advice="Wait.", call="sort")

    longer = error.reworded("opening 'x': short", advice=advice)

    assert type(longer) is errors.ObstacleError
    assert longer.to_dict() == {
        "code": "call-unsupported",
        "message": "opening 'x': short",
        "advice": advice or "Wait.",
        "call": "sort",
    }


def test_the_docstring_draws_every_class_below_its_base():
    lines = errors.__doc__.splitlines()
    drawn = {m[2]: m.start(2) for line in lines if (m := re.match(r"([ |`-]*)(\w+Error)", line))}

    assert set(drawn) == {kind.__name__ for kind in CLASSES}
    for kind in set(CLASSES) - {FitcompressError}:
        assert drawn[kind.__name__] == drawn[kind.__base__.__name__] + 4


def test_code_advice_and_facts_are_empty_by_default():
    error = FitcompressError("x")

    assert (error.code, error.advice, error.facts) == ("", "", {})


# --- near misses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("resnet5", ["resnet50", "vgg11"], "Did you mean 'resnet50'?"),
        ("layer1.1", ["layer1.0", "layer1.2"], "Did you mean 'layer1.2' or 'layer1.0'?"),
        ("vgg", ["resnet50"], ""),
        ("x", [], ""),
    ],
    ids=["one", "two", "none close", "none known"],
)
def test_near_misses_are_the_closest_names(name, known, expected):
    assert near_misses(name, known) == expected


def test_near_misses_names_three_at_most():
    assert near_misses("layer", [f"layer{n}" for n in range(9)]).count("'layer") == 3


# --- codes -------------------------------------------------------------------------------------


def coded_calls(tree: ast.AST) -> Iterator[tuple[str, int, list[str] | None]]:
    """Each construction of an error or a notice: its class, its line, its codes.

    The codes are None if there are none, and empty if the code comes from a variable `code`.
    `raise type(error)(...)` loses the code of the error: `reworded` keeps it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and ast.unparse(node).startswith("raise type("):
            yield "type", node.lineno, None
        if isinstance(node, ast.Call) and (name := getattr(node.func, "id", "")) in CODED:
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            yield name, node.lineno, codes_of(given["code"]) if "code" in given else None


def codes_of(value: ast.expr) -> list[str] | None:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.IfExp):
        return [*(codes_of(value.body) or ("",)), *(codes_of(value.orelse) or ("",))]
    names = (getattr(value, "id", ""), getattr(value, "attr", ""))
    return [] if "code" in names else None


def passed_codes(tree: ast.AST) -> Iterator[str]:
    """Every text that is passed as `code=`, to errors, notices and functions that make them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            values = (keyword.value for keyword in node.keywords if keyword.arg == "code")
            yield from (v.value for v in values if isinstance(v, ast.Constant))


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def faults(tree: ast.AST) -> list[str]:
    calls = [f"{line}: {name}" for name, line, codes in coded_calls(tree) if codes is None]
    return [*calls, *(code for code in passed_codes(tree) if not SLUG.fullmatch(code))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_error_and_every_notice_has_a_code(path):
    assert faults(ast.parse(path.read_text("utf-8"))) == []


def test_a_code_belongs_to_one_class():
    owners = defaultdict(set)
    for path in sources():
        for name, _, codes in coded_calls(ast.parse(path.read_text("utf-8"))):
            for code in codes or ():
                owners[code].add(name)

    assert {code: names for code, names in owners.items() if len(names) > 1} == {}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("raise DataError('x')", ["1: DataError"]),
        ("def f():\n    return DataError('x', path='y')", ["2: DataError"]),
        ("Notice(topic='run', message='x')", ["1: Notice"]),
        ("DataError('x', code=name)", ["1: DataError"]),
        ("DataError('x', code='Bad Code')", ["Bad Code"]),
        ("DataError('x', code='bad_code')", ["bad_code"]),
        ("notice('x', code='')", [""]),
        ("DataError('x', code='no-images')", []),
        ("DataError('x', code='no-images' if empty else 'few-images')", []),
        ("def f(code):\n    DataError('x', code=code)", []),
        ("raise type(error)('x')", ["1: type"]),
        ("raise error.reworded('x') from error", []),
        ("ValueError('x')", []),
    ],
)
def test_a_missing_or_malformed_code_is_found(source, expected):
    assert faults(ast.parse(source)) == expected
