"""The arms of an ablation: the settings that each changes, and the questions that pairs answer.

Each arm differs from another in one thing. All but `inherit` start from random weights, so that
differences come from the teacher's supervision in training.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitcompress.errors import RecipeError, near_misses
from fitcompress.recipe.fields import with_settings
from fitcompress.recipe.recipe import Recipe, apply_sets

__all__ = [
    "ARMS",
    "COMMON",
    "DEFAULT_ARMS",
    "QUESTIONS",
    "Arm",
    "Question",
    "arm_recipe",
    "arms_by_name",
    "read_arms",
]

COMMON: dict[str, Any] = {
    "student.init": "random",
    "hints.target": "teacher",
    "stage2.hint_weight": 0.0,
    "stage1.optim.patience": None,
    "run.timing": "none",
    "run.baseline": False,
}
"""Settings of all arms. With patience, stage 1 of a control whose hints cannot be learned would end
early; latencies and baselines are not compared."""
_NO_HINTS: dict[str, Any] = {"stage1.epochs": 0}
_NO_TEACHER: dict[str, Any] = {
    "stage2.lambda_kd": 0.0,
    "stage2.lambda_kd_end": 0.0,
    "stage2.label_weight": 1.0,
}


@dataclass(frozen=True)
class Arm:
    """One way to train the student."""

    name: str
    meaning: str
    settings: Mapping[str, Any]
    """Changed settings by dotted name."""
    is_long: bool = False
    """Whether stage 2 also takes the epochs of stage 1."""
    sets: tuple[str, ...] = ()
    """Settings of a custom arm, as "section.key=value"."""
    against: str = "ht"
    """The arm that a custom arm is compared with."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("bp", "labels only", _NO_HINTS | _NO_TEACHER),
        Arm("kd", "stage 2 only", _NO_HINTS),
        Arm("ht", "hints, then stage 2, as in FitNets", {}),
        Arm("ht-nokd", "hints, then labels only", _NO_TEACHER),
        Arm("kd-long", "stage 2 for the epochs of both stages", _NO_HINTS, is_long=True),
        Arm(
            "joint",
            "hints during stage 2, for the epochs of both stages",
            {**_NO_HINTS, "stage2.hint_weight": 1.0},
            is_long=True,
        ),
        Arm(
            "rand-net",
            "hints from a teacher with random weights",
            {"hints.target": "random-teacher"},
        ),
        Arm(
            "rand-iid",
            "a random vector for each image as its hint",
            {"hints.target": "random-vectors"},
        ),
        Arm("shuffled", "the hints of other images", {"hints.target": "shuffled"}),
        Arm("label", "labels as hints", {"hints.target": "labels"}),
        Arm(
            "inherit",
            "stage 2 only, from inherited weights",
            {**_NO_HINTS, "student.init": "inherit"},
        ),
    )
}
"""The arms by name. bp, kd, ht and label are those of FitNets (arXiv 1412.6550v4); the others are
controls that the paper lacks."""

DEFAULT_ARMS = ("bp", "kd", "ht", "kd-long", "rand-net", "rand-iid", "shuffled")


@dataclass(frozen=True)
class Question:
    """Whether `arm` is better than `against`."""

    arm: str
    against: str
    subject: str
    """What has helped if it is."""


QUESTIONS = (
    Question("kd", "bp", "distillation over labels alone"),
    Question("ht", "bp", "hints and distillation over labels alone"),
    Question("ht", "kd", "hints over distillation alone"),
    Question("ht", "kd-long", "hints over distillation for the epochs of both stages"),
    Question("ht", "rand-net", "the teacher's hints over those of a random teacher"),
    Question("ht", "rand-iid", "the teacher's hints over random vectors"),
    Question("ht", "shuffled", "the teacher's hints over those of other images"),
    Question("ht", "label", "the teacher's hints over labels"),
    Question("ht", "joint", "hints in a stage of their own over hints within stage 2"),
    Question("ht-nokd", "bp", "hints over none, with labels alone"),
    Question("inherit", "kd", "inherited weights over random ones"),
)
"""Fixed before anything is measured; a question counts if both of its arms are run."""


_NEXT_SETTING = r",(?=\s*[\w.]+\s*=)"
_RESERVED = ("teacher", "answers")
"""Other folders of an ablation, next to those of its arms."""
_SHARED = ("teacher.", "data.source", "data.limit", "run.seed", "run.out")
"""Prefixes of settings that no arm may change."""


def read_arms(
    names: Iterable[str], own: Sequence[str] = (), against: str | None = None
) -> tuple[Arm, ...]:
    """Known arms by name, and custom arms.

    Args:
        names: of `ARMS`.
        own: custom arms, each as "NAME: SECTION.KEY=VALUE, ...".
        against: the arm that custom arms are compared with; `ht` by default.

    Raises:
        RecipeError: a name is unknown or repeated, a custom arm is malformed, there is no arm, or
            `against` is given without custom arms.

    >>> read_arms(["kd"], ["hot: stage2.tau=8"])[1].sets
    ('stage2.tau=8',)
    """
    if against and not own:
        raise RecipeError(
            f"comparing custom arms with '{against}': there are no custom arms",
            code="custom-arms-missing",
            advice="Define one with --arm, or drop --against.",
            against=against,
        )
    arms = [_known_arm(name) for name in map(str.strip, names)]
    arms.extend(_custom_arm(text, against or Arm.against) for text in own)
    if not arms:
        raise RecipeError(
            "choosing the arms: expected at least one, got none",
            code="arms-missing",
            advice=f"Choose from {', '.join(ARMS)}.",
            known=list(ARMS),
        )
    repeated = [name for name, count in Counter(arm.name for arm in arms).items() if count > 1]
    if repeated:
        raise RecipeError(
            f"choosing the arms: '{repeated[0]}' is given more than once",
            code="arm-repeated",
            advice="Give each arm once.",
            arm=repeated[0],
        )
    return tuple(arms)


def _known_arm(name: str) -> Arm:
    if name not in ARMS:
        raise RecipeError(
            f"choosing the arms: there is no arm '{name}'",
            code="arm-unknown",
            advice=near_misses(name, ARMS) or f"Choose from {', '.join(ARMS)}.",
            arm=name,
            known=list(ARMS),
        )
    return ARMS[name]


def _custom_arm(text: str, against: str) -> Arm:
    """The arm that a user describes as "NAME: SECTION.KEY=VALUE, ..."."""
    name, _, sets = (part.strip() for part in text.partition(":"))
    parts = tuple(part.strip() for part in re.split(_NEXT_SETTING, sets) if part.strip())
    if not re.fullmatch(r"\w[\w.-]*", name) or name in _RESERVED or not parts:
        raise RecipeError(
            f"reading the arm '{text}': expected a name and settings",
            code="arm-malformed",
            advice='Write it as "NAME: SECTION.KEY=VALUE, SECTION.KEY=VALUE". A name has letters,'
            " digits, '_', '-' and '.'.",
            text=text,
        )
    if name in ARMS:
        raise RecipeError(
            f"reading the arm '{text}': '{name}' is a built-in arm ({ARMS[name].meaning})",
            code="arm-name-taken",
            advice="Choose another name.",
            arm=name,
        )
    shared = [part for part in parts if part.startswith(_SHARED)]
    if shared:
        raise RecipeError(
            f"reading the arm '{text}': an arm cannot change {shared[0]}; all arms share the"
            " teacher, the images and the seeds",
            code="arm-changes-shared-setting",
            advice=f"Remove {shared[0]} from the arm.",
            arm=name,
            setting=shared[0],
        )
    return Arm(name, ", ".join(parts), {}, sets=parts, against=against)


def arms_by_name(
    recipe: Recipe, stored: Sequence[Arm], requested: Sequence[Arm] | None
) -> dict[str, Arm]:
    """The arms of an ablation: the stored ones, then the requested ones.

    requested: None for the default arms, unless there are stored ones.

    Raises:
        RecipeError: an arm is invalid, has the name of a stored arm with other settings, or is
            compared with an unknown arm.
    """
    named = {arm.name: arm for arm in stored}
    if requested is None:
        requested = () if stored else read_arms(DEFAULT_ARMS)
    for arm in requested:
        arm_recipe(recipe, arm)
        known = named.setdefault(arm.name, arm)
        if (known.settings, known.sets, known.against) != (arm.settings, arm.sets, arm.against):
            raise RecipeError(
                f"adding the arm '{arm.name}': the ablation already has an arm of this name with"
                " different settings",
                code="arm-conflict",
                advice="Choose another name.",
                arm=arm.name,
            )
    for arm in named.values():
        if arm.against not in (Arm.against, *named):
            raise RecipeError(
                f"comparing the arm '{arm.name}' with '{arm.against}': '{arm.against}' is not one"
                " of the chosen arms",
                code="arm-reference-unknown",
                advice=f"Choose from {', '.join(named)}.",
                arm=arm.name,
                against=arm.against,
                known=list(named),
            )
    return named


def arm_recipe(recipe: Recipe, arm: Arm) -> Recipe:
    """The recipe of an arm, from a recipe with the `COMMON` settings.

    Raises:
        RecipeError: a setting of a custom arm is invalid, or the arm would equal another one: there
            are no epochs for hints, or no weights to inherit.
    """
    stage1, stage2 = recipe.stage1.epochs or 0, recipe.stage2.epochs or 0
    settings = dict(arm.settings)
    if arm.is_long:
        settings["stage2.epochs"] = stage1 + stage2
    try:
        changed = apply_sets(with_settings(recipe, settings), arm.sets)
    except RecipeError as error:
        raise error.reworded(f"making the arm '{arm.name}': {error.message}") from error
    takes_stage1 = arm.is_long or "stage1.epochs" not in arm.settings
    if recipe.stage1.epochs == 0 and not arm.sets and takes_stage1:
        raise RecipeError(
            f"making the arm '{arm.name}': it needs stage 1, which has no epochs",
            code="arm-without-stage1",
            advice="Set --hint-epochs, or drop the arm.",
            arm=arm.name,
        )
    if recipe.student.source and changed.student.init != recipe.student.init:
        raise RecipeError(
            f"making the arm '{arm.name}': a custom student has its own initial weights, which an"
            " arm cannot change",
            code="arm-initializes-custom-student",
            advice="Drop the arm, or --student.",
            arm=arm.name,
        )
    return changed
