"""The exception tree and the near misses."""

from __future__ import annotations

import inspect

import pytest

from fitcompress import errors
from fitcompress.errors import FitcompressError, near_misses

_CLASSES = [value for name in errors.__all__ if inspect.isclass(value := getattr(errors, name))]


@pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_carries_its_message_and_its_advice(kind):
    error = kind("opening 'x': it is damaged", advice="copy it again")

    assert (str(error), error.message) == ("opening 'x': it is damaged",) * 2
    assert error.advice == "copy it again"


@pytest.mark.parametrize("kind", _CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_is_caught_as_the_base_class(kind):
    assert issubclass(kind, FitcompressError)


def test_the_tree_in_the_docstring_names_every_class():
    drawn = {word for line in errors.__doc__.splitlines() for word in line.split()}

    assert {kind.__name__ for kind in _CLASSES} <= drawn


def test_advice_is_empty_where_none_is_given():
    assert FitcompressError("x").advice == ""


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("resnet5", ["resnet50", "vgg11"], "did you mean 'resnet50'?"),
        ("layer1.1", ["layer1.0", "layer1.2"], "did you mean 'layer1.2' or 'layer1.0'?"),
        ("vgg", ["resnet50"], ""),
        ("x", [], ""),
    ],
    ids=["one", "two", "none close", "none known"],
)
def test_near_misses_are_the_closest_names(name, known, expected):
    assert near_misses(name, known) == expected


def test_near_misses_names_three_at_most():
    assert near_misses("layer", [f"layer{n}" for n in range(9)]).count("'layer") == 3
