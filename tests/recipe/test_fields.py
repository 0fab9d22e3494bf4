"""Settings by dotted name, on a small tree of the test's own."""

from __future__ import annotations

import string
import tomllib
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitcompress.errors import RecipeError
from fitcompress.recipe.fields import (
    differing_settings,
    flat_settings,
    setting_type,
    settings_from_toml,
    settings_to_toml,
    with_settings,
)


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5
    clip: float | None = 1.0


@dataclass(frozen=True, kw_only=True)
class Section:
    steps: int | None = None
    is_on: bool = True
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Tree:
    name: str = "x"
    mode: Literal["fast", "none"] = "fast"
    label: str | None = None
    size: tuple[int, int] | None = None
    means: tuple[float, ...] = ()
    layers: tuple[str, ...] = ()
    section: Section = field(default_factory=Section)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("name", "resnet50", "resnet50"),
        ("mode", "none", "none"),
        ("section.steps", "12", 12),
        ("section.steps", 12, 12),
        ("section.steps", "none", None),
        ("section.steps", None, None),
        ("section.is_on", "false", False),
        ("section.is_on", False, False),
        ("section.inner.rate", "1e-4", 1e-4),
        ("section.inner.rate", 3, 3.0),
        ("size", "32,64", (32, 64)),
        ("size", [32, 64], (32, 64)),
        ("size", "none", None),
        ("means", "0.5,0.25", (0.5, 0.25)),
        ("layers", "layer1.0,layer2", ("layer1.0", "layer2")),
        ("layers", "", ()),
    ],
)
def test_a_value_or_its_text_becomes_the_type_of_the_setting(name, value, expected):
    got = flat_settings(with_settings(Tree(), {name: value}))[name]

    assert got == expected
    assert type(got) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("section.steps", "many", "an integer"),
        ("section.steps", "1.5", "an integer"),
        ("section.steps", 1.5, "an integer"),
        ("section.steps", True, "an integer"),
        ("section.inner.rate", "fast", "a number"),
        ("section.is_on", "maybe", "true or false"),
        ("section.inner.rate", None, "a number"),
        ("name", 3, "text"),
        ("size", "1,2,3", "2 values"),
        ("means", 3.0, "a list"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value, expected):
    with pytest.raises(RecipeError) as caught:
        with_settings(Tree(), {name: value})

    assert caught.value.code == "setting-type-wrong"
    assert caught.value.facts == {"setting": name, "expected": expected, "got": value}
    assert caught.value.message == f"{name} must be {expected}, got {value!r}"


def test_an_item_of_the_wrong_type_is_refused_by_its_value():
    with pytest.raises(RecipeError) as caught:
        with_settings(Tree(), {"means": "0.5,x"})

    assert caught.value.facts == {"setting": "means", "expected": "a number", "got": "x"}


@pytest.mark.parametrize("value", ["fsat", 3, None, ""])
def test_a_value_that_is_no_choice_is_refused_with_near_misses(value):
    with pytest.raises(RecipeError) as caught:
        with_settings(Tree(), {"mode": value})

    assert caught.value.code == "setting-choice-unknown"
    assert caught.value.facts == {"setting": "mode", "expected": ["fast", "none"], "got": value}
    assert ("'fast'" in caught.value.advice) == (value == "fsat")


@pytest.mark.parametrize(
    ("name", "code", "advice"),
    [
        ("nmae", "setting-unknown", "'name'?"),
        ("rate", "setting-unknown", "'section.inner.rate'?"),
        ("section.inner", "setting-is-section", "section.inner.rate, section.inner.clip"),
        ("section.inner.rate.x", "setting-unknown", ""),
        ("", "setting-unknown", ""),
    ],
)
def test_an_unknown_name_is_refused_with_near_misses(name, code, advice):
    with pytest.raises(RecipeError) as caught:
        with_settings(Tree(), {name: "1"})

    assert (caught.value.code, caught.value.facts["setting"]) == (code, name)
    assert f"'{name}'" in caught.value.message
    assert advice in caught.value.advice


def test_the_given_tree_is_not_changed():
    tree = Tree()

    with_settings(tree, {"section.inner.rate": 2})

    assert tree == Tree()


def test_values_go_in_together_so_that_checks_see_the_final_ones():
    @dataclass(frozen=True)
    class Pair:
        low: int = 0
        high: int = 1

        def __post_init__(self):
            if self.low >= self.high:
                raise RecipeError("low must be below high", code="low-above-high")

    # resolved in this module's namespace, so annotations must be types
    Pair.__annotations__ = {"low": int, "high": int}

    assert with_settings(Pair(), {"low": 5, "high": 9}) == Pair(5, 9)
    with pytest.raises(RecipeError) as caught:
        with_settings(Pair(), {"low": 5})
    assert caught.value.code == "low-above-high"


def test_differing_settings_are_named_with_both_values():
    other = with_settings(Tree(), {"section.steps": 3, "name": "y"})

    assert differing_settings(Tree(), other) == {"name": ("x", "y"), "section.steps": (None, 3)}
    assert differing_settings(other, other) == {}


def test_the_type_of_a_nested_setting_is_its_annotation():
    assert setting_type(Tree(), "section.inner.clip") == float | None
    assert setting_type(Tree(), "layers") == tuple[str, ...]


def test_toml_is_what_people_expect_to_read():
    tree = Tree(layers=("a", "b"), section=Section(inner=Inner(clip=None)))

    assert settings_to_toml(tree) == (
        'name = "x"\nmode = "fast"\n'
        'label = "none"\nsize = "none"\nmeans = []\nlayers = ["a", "b"]\n'
        '\n[section]\nsteps = "none"\nis_on = true\n'
        '\n[section.inner]\nrate = 0.5\nclip = "none"\n'
    )


_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(
    lambda text: text != "none"
)
_NUMBERS = st.floats(allow_nan=False)


@given(
    st.builds(
        Tree,
        name=_TEXTS,
        mode=st.sampled_from(["fast", "none"]),
        label=st.none() | _TEXTS,
        size=st.none() | st.tuples(st.integers(), st.integers()),
        means=st.lists(_NUMBERS).map(tuple),
        layers=st.lists(_TEXTS).map(tuple),
        section=st.builds(
            Section,
            steps=st.none() | st.integers(),
            is_on=st.booleans(),
            inner=st.builds(Inner, rate=_NUMBERS, clip=st.none() | _NUMBERS),
        ),
    )
)
def test_toml_gives_any_tree_back_exactly(tree):
    values = settings_from_toml(settings_to_toml(tree))

    assert with_settings(Tree(), values) == tree


@given(st.text(string.printable))
def test_text_that_is_not_toml_raises_nothing_else(text):
    try:
        settings_from_toml(text)
    except tomllib.TOMLDecodeError as error:
        assert str(error)
