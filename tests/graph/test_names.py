"""The next free names in the sequences that the names of a program make."""

from __future__ import annotations

import re

import pytest

from fitcompress.graph.names import TakenNames

NAMES = ["stem.weight", "a.0.weight", "a.1.b10.weight", "a.1.b9.bias", "2.weight", "norm_2.weight"]


@pytest.mark.parametrize(
    ("key", "free"),
    [("a.0", "a.2"), ("a.1.b9", "a.1.b11"), ("2", "3"), ("stem", "stem_2"), ("norm", "norm_3")],
)
def test_a_key_gets_the_next_name_of_its_sequence(key, free):
    assert TakenNames(NAMES).next_keys([key]) == {key: free}


def test_several_keys_get_different_names_and_these_stay_free_until_they_are_taken():
    names = TakenNames(NAMES)
    assert names.next_keys(["a.0", "a.1"]) == {"a.0": "a.2", "a.1": "a.3"}
    assert names.next_keys(["a.1"]) == {"a.1": "a.2"}
    names.take(["a.2.weight"])
    assert names.next_keys(["a.1"]) == {"a.1": "a.3"}


def test_a_tensor_keeps_clear_of_tensors_and_modules():
    names = TakenNames(["table", "table_2", "table_3.weight"])
    assert names.free_name("table") == "table_4"
    assert names.next_keys(["table"]) == {"table": "table_2"}, "a module keeps clear of modules"


def test_a_path_keeps_its_name_until_something_is_there():
    names = TakenNames(["stem.weight", "stem_deeper2", "a.weight"])
    assert names.free_path("stem_deeper") == "stem_deeper"
    names.take(["stem_deeper.layer.weight"])
    assert names.free_path("stem_deeper") == "stem_deeper3", "a tensor has the second name"
    assert names.free_path("a.weight") == "a.weight2"


@pytest.mark.parametrize("key", ["a.0", "a.1", "a.1.b9", "2"])
def test_the_number_is_one_more_than_the_highest_that_a_search_finds(key):
    stem = key.rstrip("0123456789")
    found = [re.match(re.escape(stem) + r"(\d+)(?:\.|$)", name) for name in NAMES]
    highest = max(int(match[1]) for match in found if match)
    assert TakenNames(NAMES).next_keys([key]) == {key: f"{stem}{highest + 1}"}
