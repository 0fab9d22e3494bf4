"""The recipe: bounds, presets against the papers, TOML, and what wins over what."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Literal

import pytest

from fitcompress.errors import RecipeError
from fitcompress.recipe.fields import flat_settings, with_settings
from fitcompress.recipe.presets import PRESETS
from fitcompress.recipe.recipe import (
    Recipe,
    apply_sets,
    load_recipe,
    recipe_from_preset,
    recipe_to_toml,
    resolve_recipe,
)
from fitcompress.recipe.schema import (
    DataRecipe,
    HintRecipe,
    OptimRecipe,
    RunRecipe,
    Stage1Recipe,
    Stage2Recipe,
    StudentRecipe,
    TeacherRecipe,
)

_OUT_OF_BOUNDS = [
    (StudentRecipe, {"depth_mult": 0.99}, "student.depth_mult", "at least 1"),
    (StudentRecipe, {"depth_mult": math.inf}, "student.depth_mult", "at least 1"),
    (StudentRecipe, {"depth_mult": math.nan}, "student.depth_mult", "at least 1"),
    (StudentRecipe, {"width_mult": 0.0}, "student.width_mult", "above 0 and at most 1"),
    (StudentRecipe, {"width_mult": 1.01}, "student.width_mult", "above 0 and at most 1"),
    (StudentRecipe, {"width_mult": math.nan}, "student.width_mult", "above 0 and at most 1"),
    (TeacherRecipe, {"num_classes": 0}, "teacher.num_classes", "at least 1"),
    (TeacherRecipe, {"input_size": (3, 0, 8)}, "teacher.input_size", "at least 1"),
    (TeacherRecipe, {"std": (0.2, 0.0, 0.2)}, "teacher.std", "above 0"),
    (TeacherRecipe, {"epochs": -1}, "teacher.epochs", "at least 0"),
    (TeacherRecipe, {"lr": 0.0}, "teacher.lr", "above 0"),
    (DataRecipe, {"batch_size": 0}, "data.batch_size", "at least 1"),
    (DataRecipe, {"num_workers": -1}, "data.num_workers", "at least 0"),
    (DataRecipe, {"padding": 0.5}, "data.padding", "at least 0 and below 0.5"),
    (DataRecipe, {"mixup": -0.1}, "data.mixup", "at least 0"),
    (DataRecipe, {"limit": 0}, "data.limit", "at least 1"),
    (DataRecipe, {"max_unreadable": -1}, "data.max_unreadable", "at least 0"),
    (HintRecipe, {"num_pairs": 0}, "hints.num_pairs", "at least 1"),
    (OptimRecipe, {"lr": 0.0}, "optim.lr", "above 0"),
    (OptimRecipe, {"lr": math.nan}, "optim.lr", "above 0"),
    (OptimRecipe, {"weight_decay": -1.0}, "optim.weight_decay", "at least 0"),
    (OptimRecipe, {"warmup_epochs": -1.0}, "optim.warmup_epochs", "at least 0"),
    (OptimRecipe, {"grad_clip": 0.0}, "optim.grad_clip", "above 0"),
    (Stage1Recipe, {"epochs": -1}, "stage1.epochs", "at least 0"),
    (Stage2Recipe, {"epochs": -1}, "stage2.epochs", "at least 0"),
    (Stage2Recipe, {"optim": OptimRecipe(lr=None)}, "stage2.optim.lr", "a number"),
    (Stage2Recipe, {"tau": 0.0}, "stage2.tau", "above 0"),
    (Stage2Recipe, {"student_tau": -1.0}, "stage2.student_tau", "above 0"),
    (Stage2Recipe, {"label_weight": -0.1}, "stage2.label_weight", "at least 0"),
    (Stage2Recipe, {"lambda_kd": -1.0}, "stage2.lambda_kd", "at least 0"),
    (Stage2Recipe, {"lambda_kd_end": -1.0}, "stage2.lambda_kd_end", "at least 0"),
    (Stage2Recipe, {"label_smoothing": 1.0}, "stage2.label_smoothing", "at least 0 and below 1"),
    (RunRecipe, {"seed": -1}, "run.seed", "at least 0"),
    (RunRecipe, {"device": "gpu"}, "run.device", "auto, cpu, cuda, cuda:N or mps"),
]


@pytest.mark.parametrize(
    ("section", "values", "setting", "bound"),
    _OUT_OF_BOUNDS,
    ids=[f"{section.__name__} {values}" for section, values, *_ in _OUT_OF_BOUNDS],
)
def test_a_value_out_of_bounds_is_refused_by_name(section, values, setting, bound):
    with pytest.raises(RecipeError) as caught:
        section(**values)

    assert caught.value.code == "setting-out-of-bounds"
    assert (caught.value.facts["setting"], caught.value.facts["expected"]) == (setting, bound)
    assert caught.value.message.startswith(f"{setting} must be {bound}, got ")


_CHOICES = {
    (section, name): typing.get_args(hint)
    for section in ("teacher", "student", "data", "hints", "run")
    for name, hint in typing.get_type_hints(type(getattr(Recipe(), section))).items()
    if typing.get_origin(hint) is Literal
}


def test_every_kind_of_choice_is_annotated():
    assert {section for section, _ in _CHOICES} == {"teacher", "student", "data", "hints", "run"}


@pytest.mark.parametrize(("section", "name"), _CHOICES)
def test_a_choice_is_taken(section, name):
    for choice in _CHOICES[section, name]:
        changed = with_settings(Recipe(), {f"{section}.{name}": choice})
        assert flat_settings(changed)[f"{section}.{name}"] == choice


@pytest.mark.parametrize(("section", "name"), _CHOICES)
@pytest.mark.parametrize("is_by_name", [True, False], ids=["by name", "by the constructor"])
def test_what_is_no_choice_is_refused_with_near_misses(section, name, is_by_name):
    """By the constructor too: mypy sees only what is written in Python."""
    known = _CHOICES[section, name]
    wrong = f"{known[-1]}x"

    with pytest.raises(RecipeError) as caught:
        if is_by_name:
            with_settings(Recipe(), {f"{section}.{name}": wrong})
        else:
            dataclasses.replace(getattr(Recipe(), section), **{name: wrong})

    assert caught.value.code == "setting-choice-unknown"
    assert caught.value.facts == {
        "setting": f"{section}.{name}",
        "expected": list(known),
        "got": wrong,
    }
    assert repr(known[-1]) in caught.value.advice


def test_the_schedule_of_a_stage_is_refused_by_the_name_of_the_stage():
    with pytest.raises(RecipeError) as caught:
        with_settings(Recipe(), {"stage1.optim.schedule": "step"})

    assert caught.value.facts["setting"] == "stage1.optim.schedule"
    assert caught.value.facts["expected"] == ["cosine", "steps", "constant"]


@pytest.mark.parametrize(
    ("section", "values", "code"),
    [
        (TeacherRecipe, {"mean": (0.5,), "std": (0.2, 0.2)}, "mean-std-mismatch"),
        (TeacherRecipe, {"inputs": ("1x8",), "mean": (0.5,)}, "tensor-and-image-inputs"),
        (HintRecipe, {"hint": ("a", "b"), "guided": ("c",)}, "hint-pairs-mismatch"),
        (StudentRecipe, {"width_mult": 0.5, "target_params": "10%"}, "width-and-target"),
        (StudentRecipe, {"target_latency": "fast"}, "target-unreadable"),
        (StudentRecipe, {"target_size": "0MB"}, "target-unreadable"),
        (Recipe, {"preset": "fitnet"}, "setting-choice-unknown"),
        (
            Recipe,
            {
                "stage2": Stage2Recipe(hint_weight=1.0),
                "hints": HintRecipe(target="random-teacher"),
            },
            "hint-weight-random-teacher",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(section, values, code):
    with pytest.raises(RecipeError) as caught:
        section(**values)

    assert caught.value.code == code


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (StudentRecipe, {"depth_mult": 1.0, "width_mult": 1.0, "init": "inherit"}),
        (StudentRecipe, {"depth_mult": 10.0, "width_mult": 0.001}),
        (TeacherRecipe, {"input_size": (1, 1, 1), "mean": (0.0,), "std": (1e-3,), "epochs": 0}),
        (HintRecipe, {"hint": ("a", "b")}),
        (HintRecipe, {"guided": ("a",), "hint": ("b",)}),
        (Stage2Recipe, {"epochs": 0, "lambda_kd": 0.0, "label_weight": 0.0}),
        (RunRecipe, {"device": "cuda:1"}),
        (RunRecipe, {"device": "mps"}),
    ],
)
def test_a_value_on_its_bound_is_taken(section, values):
    made = section(**values)

    assert {name: getattr(made, name) for name in values} == values


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().preset = "hinton"


def test_the_modern_preset_is_the_default():
    assert recipe_from_preset("modern") == Recipe()


def test_the_fitnets_preset_is_equation_2_and_3_of_the_paper():
    recipe = recipe_from_preset("fitnets")

    # Eq. 2: H(y, P_S) + lambda * H(P_T^tau, P_S^tau), lambda from 4 to 1, tau 3, no tau^2.
    stage2 = dataclasses.replace(recipe.stage2, optim=OptimRecipe())
    assert stage2 == Stage2Recipe(
        tau=3.0, tau_squared=False, label_weight=1.0, lambda_kd=4.0, lambda_kd_end=1.0
    )
    # Eq. 3: raw maps, and a regressor only where the shapes differ.
    assert recipe.hints == HintRecipe(standardise=False, regressor_when_equal=False)
    # Section 3.1: RMSProp, 0.005, batches of 128, the same in both stages.
    assert recipe.stage1.optim == recipe.stage2.optim
    assert (recipe.stage1.optim.optimizer, recipe.stage1.optim.lr) == ("rmsprop", 0.005)
    assert (recipe.stage1.optim.schedule, recipe.stage1.optim.weight_decay) == ("constant", 0.0)
    assert (recipe.data.batch_size, recipe.data.augment) == (128, "flip")


def test_the_hinton_preset_has_no_hints_and_weighs_soft_targets_by_tau_squared():
    recipe = recipe_from_preset("hinton")

    assert recipe.stage1.epochs == 0
    assert recipe.stage2 == Stage2Recipe(
        tau=4.0, tau_squared=True, label_weight=0.1, lambda_kd=0.9, lambda_kd_end=None
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_written_recipe_is_read_back_exactly(preset, tmp_path):
    recipe = apply_sets(
        recipe_from_preset(preset),
        ["stage1.optim.grad_clip=none", "hints.hint=a[0],b", "teacher.input_size=3,32,48"],
    )
    path = tmp_path / "recipe.toml"
    path.write_text(recipe_to_toml(recipe), encoding="utf-8")

    assert load_recipe(str(path)) == recipe


def test_a_recipe_file_goes_over_the_preset_that_it_names(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text('preset = "fitnets"\n[stage2]\ntau = 5\n', encoding="utf-8")

    recipe = load_recipe(path)

    assert (recipe.preset, recipe.stage2.tau, recipe.stage2.lambda_kd) == ("fitnets", 5.0, 4.0)


def test_flags_win_over_sets_over_the_file_over_the_preset(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("[stage2]\ntau = 5\nlabel_weight = 0.5\nlambda_kd = 0.5\n", encoding="utf-8")

    recipe = resolve_recipe(
        preset="fitnets",
        config=path,
        sets=["stage2.label_weight=0.25", "stage2.lambda_kd=0.25"],
        settings={"stage2.lambda_kd": 0.125},
    )

    assert recipe.stage2.lambda_kd_end == 1.0  # preset
    assert recipe.stage2.tau == 5.0  # file
    assert recipe.stage2.label_weight == 0.25  # --set
    assert recipe.stage2.lambda_kd == 0.125  # flag


def test_without_anything_the_recipe_is_the_default():
    assert resolve_recipe() == Recipe()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, "recipe-unreadable"),
        ("[stage2\n", "recipe-unreadable"),
        ("[stage2]\ntua = 3\n", "setting-unknown"),
        ("[stage2]\ntau = 0\n", "setting-out-of-bounds"),
        ('preset = "best"\n', "setting-choice-unknown"),
        ("preset = 3\n", "setting-choice-unknown"),
        ("stage2 = 3\n", "setting-is-section"),
    ],
    ids=["missing", "not TOML", "unknown", "bound", "preset", "preset number", "section"],
)
def test_a_bad_recipe_file_is_refused_by_its_path(text, code, tmp_path):
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    assert caught.value.code == code
    assert f"the recipe '{path}': " in caught.value.message


@pytest.mark.parametrize(
    ("text", "code", "advice"),
    [
        ("stage2.tau", "set-without-value", "stage2.tau=3"),
        ("tau=3", "setting-unknown", "'stage2.tau'?"),
        ("lr=3", "setting-unknown", "'teacher.lr' or 'stage1.optim.lr' or 'stage2.optim.lr'?"),
        ("stage2.tau=x", "setting-type-wrong", ""),
        ("preset=hinton", "set-preset", "--preset"),
    ],
)
def test_a_bad_set_is_refused_with_what_to_write(text, code, advice):
    with pytest.raises(RecipeError) as caught:
        apply_sets(Recipe(), [text])

    assert caught.value.code == code
    assert advice in caught.value.advice


def test_the_last_of_two_sets_wins_and_blanks_do_not_matter():
    recipe = apply_sets(Recipe(), ["stage2.tau=3", " stage2.tau = 2 "])

    assert recipe.stage2.tau == 2.0


def test_presets_change_only_settings_that_exist():
    known = flat_settings(Recipe())

    assert {name for values in PRESETS.values() for name in values} <= set(known)
