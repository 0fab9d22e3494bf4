"""What a network takes and gives, in words and as values."""

from __future__ import annotations

import pytest

from fitcompress.errors import RecipeError
from fitcompress.interface import Interface, TensorSpec, read_tensor_spec
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
def test_an_input_that_cannot_be_read_is_an_error_with_an_example(text):
    with pytest.raises(RecipeError, match="1x16000"):
        read_tensor_spec(text)


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


def test_what_the_user_says_of_the_outputs_counts_more():
    assert Interface(output_kind="values").kind_of((2, 10)) == "values"
    assert Interface(output_kind="classes").kind_of((2, 21, 8, 8)) == "classes"
    assert Interface(output_kind="classes").kind_of((2,)) == "values"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": ("4",), "input_size": (3, 8, 8)}, "takes no images"),
        ({"inputs": ("4",), "mean": (0.5,)}, "takes no images"),
        ({"inputs": ("4", "x")}, "cannot read the input"),
        ({"output_kind": "logits"}, "teacher.output_kind must be one of"),
    ],
)
def test_settings_that_cannot_hold_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        TeacherRecipe(**settings)
