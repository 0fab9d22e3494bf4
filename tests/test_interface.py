"""Inputs as text, the meaning of outputs, and metadata."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from fitcompress.errors import RecipeError
from fitcompress.interface import (
    InputSpec,
    Interface,
    TensorSpec,
    interface_from_json,
    interface_from_metadata,
    interface_to_metadata,
    read_tensor_spec,
)
from fitcompress.recipe.schema import TeacherRecipe


@pytest.mark.parametrize(
    ("text", "shape", "dtype"),
    [
        ("1x16000", (1, 16000), "float32"),
        (" 128:int64 ", (128,), "int64"),
        ("3x16x112x112:float16", (3, 16, 112, 112), "float16"),
        (":bool", (), "bool"),
    ],
)
def test_an_input_is_read_and_written(text, shape, dtype):
    spec = read_tensor_spec(text)
    assert spec == TensorSpec(shape=shape, dtype=dtype)
    assert read_tensor_spec(str(spec)) == spec


@pytest.mark.parametrize("text", ["0x3", "3x", "x3", "-1", "3,4", "3:float", "3:str", "a", "3 x 4"])
def test_a_malformed_input_is_an_error(text):
    with pytest.raises(RecipeError) as caught:
        read_tensor_spec(text)
    assert (caught.value.code, caught.value.facts) == ("input-malformed", {"input": text})


@pytest.mark.parametrize(
    ("shape", "activation", "kind"),
    [
        ((2, 10), "", "classes"),
        ((2, 10), "softmax", "classes"),
        ((2, 10), "sigmoid", "labels"),
        ((2, 1), "sigmoid", "labels"),
        ((2, 1), "", "values"),
        ((2,), "", "values"),
        ((2, 21, 8, 8), "", "values"),
    ],
)
def test_the_meaning_of_an_output_follows_from_its_shape_and_its_end(shape, activation, kind):
    assert Interface(activation=activation).kind_of(shape) == kind


def test_the_output_kind_of_the_user_takes_precedence():
    assert Interface(output_kind="values").kind_of((2, 10)) == "values"
    assert Interface(output_kind="classes").kind_of((2, 21, 8, 8)) == "classes"
    assert Interface(output_kind="classes").kind_of((2,)) == "values"


INTERFACES = [
    Interface(
        input=InputSpec(shape=(3, 8, 8), mean=(0.1,) * 3, std=(0.2,) * 3, crop_pct=0.9),
        class_names=("a", "é"),
        activation="softmax",
        origin={"teacher": "x"},
    ),
    Interface(
        inputs=(TensorSpec(shape=(4,), name="x"), TensorSpec(shape=(), dtype="int64")),
        output_names=("mean", "variance"),
        output_kind="values",
    ),
]


@pytest.mark.parametrize("interface", INTERFACES, ids=["images", "tensors"])
@pytest.mark.parametrize("takes_pixels", [False, True])
def test_metadata_is_text_and_is_read_back(interface, takes_pixels):
    entries = interface_to_metadata(interface, "1.2", takes_pixels=takes_pixels)

    assert all(isinstance(value, str) for value in entries.values())
    assert interface_from_metadata({**entries, "producer": "someone"}) == interface


@pytest.mark.parametrize("interface", INTERFACES, ids=["images", "tensors"])
def test_json_is_read_back(interface):
    assert interface_from_json(json.loads(json.dumps(asdict(interface)))) == interface


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"class_names": None}, KeyError),
        ({"mean": None}, KeyError),
        ({"mean": "[0.1"}, ValueError),
        ({"input_shape": "[3, 8]"}, ValueError),
    ],
)
def test_missing_or_malformed_metadata_is_an_error(change, error):
    entries = {**interface_to_metadata(INTERFACES[0], "1.2"), **change}
    with pytest.raises(error):
        interface_from_metadata({key: value for key, value in entries.items() if value})


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"inputs": ("4",), "input_size": (3, 8, 8)}, "tensor-and-image-inputs"),
        ({"inputs": ("4",), "mean": (0.5,)}, "tensor-and-image-inputs"),
        ({"inputs": ("4", "x")}, "input-malformed"),
        ({"output_kind": "logits"}, "setting-choice-unknown"),
    ],
)
def test_inconsistent_settings_are_errors(settings, code):
    with pytest.raises(RecipeError) as caught:
        TeacherRecipe(**settings)
    assert caught.value.code == code
