"""The arms of an ablation: each differs from another in one thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import toy_runs

from fitcompress.ablation.arms import (
    ARMS,
    COMMON,
    DEFAULT_ARMS,
    arm_recipe,
    arms_by_name,
    read_arms,
)
from fitcompress.errors import RecipeError
from fitcompress.recipe.fields import differing_settings, with_settings


def changed(name: str) -> set[str]:
    base = with_settings(toy_runs.toy_recipe(Path("images"), Path("out")), COMMON)
    arm, kd = (arm_recipe(base, ARMS[each]) for each in (name, "kd"))
    return set(differing_settings(arm, kd))


def test_every_arm_differs_from_another_in_one_thing():
    hints = {"stage1.epochs"}
    assert changed("ht") == hints
    assert changed("kd-long") == {"stage2.epochs"}
    assert changed("inherit") == {"student.init"}
    for name in ("rand-net", "rand-iid", "shuffled", "label"):
        assert changed(name) == hints | {"hints.target"}
    labels = {"stage2.lambda_kd", "stage2.lambda_kd_end", "stage2.label_weight"}
    assert changed("bp") == labels
    assert changed("ht-nokd") == labels | hints
    assert changed("joint") == {"stage2.epochs", "stage2.hint_weight"}


def test_long_arms_take_the_epochs_of_both_stages():
    base = toy_runs.toy_recipe(Path("images"), Path("out"), stage1__epochs=3, stage2__epochs=5)
    assert arm_recipe(base, ARMS["kd-long"]).stage2.epochs == 8
    assert arm_recipe(base, ARMS["kd"]).stage2.epochs == 5


@pytest.mark.parametrize(
    ("names", "own", "code", "facts"),
    [
        (["kdd"], [], "arm-unknown", {"arm": "kdd"}),
        (["kd", "kd"], [], "arm-repeated", {"arm": "kd"}),
        ([], [], "arms-missing", {}),
        (["kd"], ["hot"], "arm-malformed", {"text": "hot"}),
        (["kd"], ["../x: stage2.tau=3"], "arm-malformed", {"text": "../x: stage2.tau=3"}),
        (["kd"], ["answers: stage2.tau=3"], "arm-malformed", {"text": "answers: stage2.tau=3"}),
        (["bp"], ["kd: stage2.tau=3"], "arm-name-taken", {"arm": "kd"}),
        (["kd"], ["x: stage2.tau=3", "x: stage2.tau=4"], "arm-repeated", {"arm": "x"}),
        (
            ["kd"],
            ["x: stage2.tau=3, run.seed=7"],
            "arm-changes-shared-setting",
            {"arm": "x", "setting": "run.seed=7"},
        ),
        (
            ["kd"],
            ["x: teacher.source=other.pt"],
            "arm-changes-shared-setting",
            {"arm": "x", "setting": "teacher.source=other.pt"},
        ),
    ],
)
def test_invalid_arms_are_refused(names, own, code, facts):
    with pytest.raises(RecipeError) as caught:
        read_arms(names, own)

    assert caught.value.code == code
    assert facts.items() <= caught.value.facts.items()


def test_a_list_within_a_setting_is_not_taken_apart():
    (arm,) = read_arms([], ["two: hints.hint=a,b, stage2.tau=3"])
    assert arm.sets == ("hints.hint=a,b", "stage2.tau=3")


CUSTOM = ("mild: stage2.tau=2", "hot: stage2.tau=8")


def test_custom_arms_are_compared_with_the_given_arm():
    base = toy_runs.toy_recipe(Path("images"), Path("out"))
    named = arms_by_name(base, [], read_arms(["kd"], CUSTOM, "mild"))

    against = {name: arm.against for name, arm in named.items() if arm.sets}
    assert against == {"mild": "mild", "hot": "mild"}
    more = arms_by_name(base, list(named.values()), read_arms([], ["cold: stage2.tau=1"], "hot"))
    assert list(more) == ["kd", "mild", "hot", "cold"] and more["mild"] == named["mild"]


def test_the_arm_to_compare_with_must_be_run():
    base = toy_runs.toy_recipe(Path("images"), Path("out"))
    with pytest.raises(RecipeError) as caught:
        arms_by_name(base, [], read_arms(["kd"], CUSTOM, "hto"))

    assert caught.value.code == "arm-reference-unknown"
    assert caught.value.facts == {"arm": "mild", "against": "hto", "known": ["kd", "mild", "hot"]}


def test_only_custom_arms_are_compared_with_a_given_arm():
    with pytest.raises(RecipeError) as caught:
        read_arms(["kd"], [], "kd")

    assert caught.value.code == "custom-arms-missing"


def test_an_invalid_setting_names_its_arm():
    base = toy_runs.toy_recipe(Path("images"), Path("out"))
    with pytest.raises(RecipeError, match="making the arm 'odd': ") as caught:
        arm_recipe(base, read_arms([], ["odd: stage2.taau=1"])[0])

    assert caught.value.code == "setting-unknown"
    assert "stage2.tau" in caught.value.advice


def test_arms_of_one_name_have_the_same_settings():
    base = toy_runs.toy_recipe(Path("images"), Path("out"))
    stored = read_arms(["kd"], ["hot: stage2.tau=8"])
    assert list(arms_by_name(base, stored, stored)) == ["kd", "hot"]

    with pytest.raises(RecipeError) as caught:
        arms_by_name(base, stored, read_arms(["kd"], ["hot: stage2.tau=2"]))

    assert (caught.value.code, caught.value.facts) == ("arm-conflict", {"arm": "hot"})


def test_the_default_arms_are_used_where_none_are_stored_or_requested():
    base = toy_runs.toy_recipe(Path("images"), Path("out"))
    assert tuple(arms_by_name(base, [], None)) == DEFAULT_ARMS
    assert tuple(arms_by_name(base, read_arms(["bp"]), None)) == ("bp",)


def test_hints_need_epochs():
    base = toy_runs.toy_recipe(Path("images"), Path("out"), stage1__epochs=0)
    for name in ("ht", "kd-long", "joint"):
        with pytest.raises(RecipeError) as caught:
            arm_recipe(base, ARMS[name])
        assert (caught.value.code, caught.value.facts) == ("arm-without-stage1", {"arm": name})
    assert arm_recipe(base, ARMS["kd"]).stage1.epochs == 0


def test_a_custom_student_inherits_nothing():
    settings = {**COMMON, "student.source": "nets:mine"}
    base = with_settings(toy_runs.toy_recipe(Path("images"), Path("out")), settings)
    with pytest.raises(RecipeError) as caught:
        arm_recipe(base, ARMS["inherit"])
    assert caught.value.code == "arm-initializes-custom-student"
    assert arm_recipe(base, ARMS["kd"]).student.source == "nets:mine"
