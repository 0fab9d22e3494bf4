"""The recipe: bounds, presets against the papers, TOML, and what wins over what."""

from __future__ import annotations

import dataclasses
import math

import pytest

from fitcompress.errors import RecipeError
from fitcompress.recipe.fields import flat_settings
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

_WRONG = [
    (StudentRecipe, {"depth_mult": 0.99}, "student.depth_mult must be at least 1, got 0.99"),
    (StudentRecipe, {"depth_mult": math.inf}, "student.depth_mult must be at least 1, got inf"),
    (StudentRecipe, {"depth_mult": math.nan}, "student.depth_mult must be at least 1, got nan"),
    (StudentRecipe, {"width_mult": 0.0}, "student.width_mult must be above 0 and at most 1, got 0"),
    (StudentRecipe, {"width_mult": 1.01}, "student.width_mult must be above 0 and at most 1"),
    (StudentRecipe, {"width_mult": math.nan}, "student.width_mult must be above 0 and at most 1"),
    (StudentRecipe, {"init": "zero"}, "student.init must be one of random, inherit, got 'zero'"),
    (TeacherRecipe, {"num_classes": 0}, "teacher.num_classes must be at least 1, got 0"),
    (TeacherRecipe, {"input_size": (3, 0, 8)}, "teacher.input_size must be at least 1, got 0"),
    (TeacherRecipe, {"std": (0.2, 0.0, 0.2)}, "teacher.std must be above 0, got 0.0"),
    (
        TeacherRecipe,
        {"mean": (0.5,), "std": (0.2, 0.2)},
        "teacher.mean and teacher.std must have a value per channel each, got 1 and 2",
    ),
    (TeacherRecipe, {"epochs": -1}, "teacher.epochs must be at least 0, got -1"),
    (TeacherRecipe, {"lr": 0.0}, "teacher.lr must be above 0, got 0.0"),
    (DataRecipe, {"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
    (DataRecipe, {"num_workers": -1}, "data.num_workers must be at least 0, got -1"),
    (
        DataRecipe,
        {"augment": "crops"},
        "data.augment must be one of none, flip, shift, crop",
    ),
    (DataRecipe, {"mixup": -0.1}, "data.mixup must be at least 0, got -0.1"),
    (DataRecipe, {"limit": 0}, "data.limit must be at least 1, got 0"),
    (DataRecipe, {"max_unreadable": -1}, "data.max_unreadable must be at least 0, got -1"),
    (HintRecipe, {"num_pairs": 0}, "hints.num_pairs must be at least 1, got 0"),
    (
        HintRecipe,
        {"hint": ("a", "b"), "guided": ("c",)},
        "hints.hint and hints.guided are pairs and must be as many, got 2 and 1",
    ),
    (OptimRecipe, {"lr": 0.0}, "optim.lr must be above 0, got 0.0"),
    (OptimRecipe, {"lr": math.nan}, "optim.lr must be above 0, got nan"),
    (OptimRecipe, {"weight_decay": -1.0}, "optim.weight_decay must be at least 0, got -1.0"),
    (OptimRecipe, {"schedule": "step"}, "optim.schedule must be one of cosine, steps, constant"),
    (OptimRecipe, {"warmup_epochs": -1.0}, "optim.warmup_epochs must be at least 0, got -1.0"),
    (OptimRecipe, {"grad_clip": 0.0}, "optim.grad_clip must be above 0, got 0.0"),
    (Stage1Recipe, {"epochs": -1}, "stage1.epochs must be at least 0, got -1"),
    (Stage2Recipe, {"epochs": -1}, "stage2.epochs must be at least 0, got -1"),
    (
        Stage2Recipe,
        {"optim": OptimRecipe(lr=None)},
        "stage2.optim.lr must be a number, got None",
    ),
    (Stage2Recipe, {"tau": 0.0}, "stage2.tau must be above 0, got 0.0"),
    (Stage2Recipe, {"student_tau": -1.0}, "stage2.student_tau must be above 0, got -1.0"),
    (Stage2Recipe, {"label_weight": -0.1}, "stage2.label_weight must be at least 0, got -0.1"),
    (Stage2Recipe, {"lambda_kd": -1.0}, "stage2.lambda_kd must be at least 0, got -1.0"),
    (Stage2Recipe, {"lambda_kd_end": -1.0}, "stage2.lambda_kd_end must be at least 0, got -1.0"),
    (Stage2Recipe, {"label_smoothing": 1.0}, "stage2.label_smoothing must be at least 0 and below"),
    (RunRecipe, {"seed": -1}, "run.seed must be at least 0, got -1"),
    (RunRecipe, {"device": "gpu"}, "run.device must be auto, cpu, cuda, cuda:N or mps, got 'gpu'"),
    (RunRecipe, {"precision": "int8"}, "run.precision must be one of auto, fp32, bf16, fp16"),
    (Recipe, {"preset": "fitnet"}, "preset must be one of modern, fitnets, hinton, got 'fitnet'"),
]


@pytest.mark.parametrize(
    ("section", "values", "message"),
    _WRONG,
    ids=[f"{section.__name__} {values}" for section, values, _ in _WRONG],
)
def test_a_value_outside_its_bound_is_refused_by_name(section, values, message):
    with pytest.raises(RecipeError) as caught:
        section(**values)

    assert caught.value.message.startswith(message)


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
    ("text", "message"),
    [
        (None, "cannot read the recipe '{path}': "),
        ("[stage2\n", "cannot read the recipe '{path}': "),
        ("[stage2]\ntua = 3\n", "in the recipe '{path}': there is no setting 'stage2.tua'"),
        ("[stage2]\ntau = 0\n", "in the recipe '{path}': stage2.tau must be above 0, got 0.0"),
        ('preset = "best"\n', "in the recipe '{path}': preset must be one of modern, fitnets"),
        ("preset = 3\n", "in the recipe '{path}': preset must be one of modern, fitnets"),
        ("stage2 = 3\n", "in the recipe '{path}': 'stage2' is a section, not a setting"),
    ],
    ids=["missing", "not TOML", "unknown", "bound", "preset", "preset number", "section"],
)
def test_a_bad_recipe_file_is_refused_by_its_path(text, message, tmp_path):
    path = tmp_path / "recipe.toml"
    if text is not None:
        path.write_text(text, encoding="utf-8")

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    assert caught.value.message.startswith(message.format(path=path))


@pytest.mark.parametrize(
    ("text", "message", "advice"),
    [
        ("stage2.tau", "cannot apply 'stage2.tau'", "write it as section.key=value"),
        ("tau=3", "there is no setting 'tau'", "did you mean 'stage2.tau'?"),
        (
            "lr=3",
            "there is no setting 'lr'",
            "did you mean 'teacher.lr' or 'stage1.optim.lr' or 'stage2.optim.lr'?",
        ),
        ("stage2.tau=x", "'stage2.tau' must be a number, got 'x'", ""),
        ("preset=hinton", "a preset is chosen before single settings", "use --preset"),
    ],
)
def test_a_bad_set_is_refused_with_what_to_write(text, message, advice):
    with pytest.raises(RecipeError) as caught:
        apply_sets(Recipe(), [text])

    assert (caught.value.message, caught.value.advice) == (message, advice)


def test_the_last_of_two_sets_wins_and_blanks_do_not_matter():
    recipe = apply_sets(Recipe(), ["stage2.tau=3", " stage2.tau = 2 "])

    assert recipe.stage2.tau == 2.0


def test_presets_change_only_settings_that_exist():
    known = flat_settings(Recipe())

    assert {name for values in PRESETS.values() for name in values} <= set(known)
