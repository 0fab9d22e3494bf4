"""The arms of an ablation: what each changes in a recipe, and which questions two of them answer.
Layer: recipe; no torch.

Each arm differs in one thing from another. All but `inherit` start from random weights: what is
asked is what the teacher gives in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
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
"""What all arms begin with. Hints that cannot be learnt would end their stage early, and be less of
a control; what is not compared is not measured."""
_NO_HINTS: dict[str, Any] = {"stage1.epochs": 0}
_NO_TEACHER: dict[str, Any] = {
    "stage2.lambda_kd": 0.0,
    "stage2.lambda_kd_end": 0.0,
    "stage2.label_weight": 1.0,
}


@dataclass(frozen=True)
class Arm:
    """A way to train the student."""

    name: str
    meaning: str
    settings: Mapping[str, Any]
    """What it changes in the recipe, by dotted name."""
    is_long: bool = False
    """Whether stage 2 also takes the epochs of stage 1, which it does not have."""
    sets: tuple[str, ...] = ()
    """Settings as a user wrote them."""
    against: str = "ht"
    """What one of the user's own is held against."""


ARMS = {
    arm.name: arm
    for arm in (
        Arm("bp", "labels alone", _NO_HINTS | _NO_TEACHER),
        Arm("kd", "stage 2 alone", _NO_HINTS),
        Arm("ht", "hints, then stage 2: the method", {}),
        Arm("ht-nokd", "hints, then labels alone", _NO_TEACHER),
        Arm("kd-long", "stage 2 for the epochs of both stages", _NO_HINTS, is_long=True),
        Arm(
            "joint",
            "hints within stage 2, for the epochs of both stages",
            {**_NO_HINTS, "stage2.hint_weight": 1.0},
            is_long=True,
        ),
        Arm("rand-net", "hints of random weights", {"hints.target": "random-teacher"}),
        Arm("rand-iid", "a random vector per image as hint", {"hints.target": "random-vectors"}),
        Arm("shuffled", "the hints of other images", {"hints.target": "shuffled"}),
        Arm("label", "labels as hints", {"hints.target": "labels"}),
        Arm(
            "inherit",
            "stage 2 alone, from inherited weights",
            {**_NO_HINTS, "student.init": "inherit"},
        ),
    )
}
"""By name. Sources: FitNets (arXiv 1412.6550v4) for bp, kd, ht and label; the others are the
controls that it lacks."""

DEFAULT_ARMS = ("bp", "kd", "ht", "kd-long", "rand-net", "rand-iid", "shuffled")


@dataclass(frozen=True)
class Question:
    """Whether an arm is better than another, and what that would say."""

    arm: str
    against: str
    subject: str
    """What would have helped."""


QUESTIONS = (
    Question("kd", "bp", "distillation over labels alone"),
    Question("ht", "bp", "hints and distillation over labels alone"),
    Question("ht", "kd", "hints over distillation alone"),
    Question("ht", "kd-long", "hints over distillation for the epochs of both stages"),
    Question("ht", "rand-net", "the teacher's hints over those of random weights"),
    Question("ht", "rand-iid", "the teacher's hints over random vectors"),
    Question("ht", "shuffled", "the teacher's hints over those of other images"),
    Question("ht", "label", "the teacher's hints over labels"),
    Question("ht", "joint", "hints in a stage of their own over hints within stage 2"),
    Question("ht-nokd", "bp", "hints over nothing, with labels alone"),
    Question("inherit", "kd", "inherited weights over random ones"),
)
"""Fixed before anything is measured; those count of which both arms were run."""


_NEXT_SETTING = r",(?=\s*[\w.]+\s*=)"
_TAKEN = ("teacher", "answers")
"""Folders of an ablation that are no arms."""
_SHARED = ("teacher.", "data.source", "data.limit", "run.seed", "run.out")
"""What is the same in all arms: beginnings of settings."""


def read_arms(
    names: Iterable[str], own: Sequence[str] = (), against: str | None = None
) -> tuple[Arm, ...]:
    """The arms of these names, and those that a user describes as "NAME: SETTING=VALUE, ...", each
    to be held `against` another, `ht` if that is None.

    Raises:
        RecipeError: an unknown name, one that comes twice, a description that is none, or nothing
            of one's own to hold against another.

    >>> read_arms(["kd"], ["hot: stage2.tau=8"])[1].sets
    ('stage2.tau=8',)
    """
    if against and not own:
        raise RecipeError(
            f"holding arms of your own against '{against}': there is none",
            advice="give one with --arm, or leave out --against",
        )
    arms = []
    for name in map(str.strip, names):
        if name not in ARMS:
            known = near_misses(name, ARMS) or f"known are {', '.join(ARMS)}"
            raise RecipeError(f"choosing the arms: there is no '{name}'", advice=known)
        arms.append(ARMS[name])
    arms.extend(_own_arm(text, against or Arm.against) for text in own)
    twice = {arm.name for arm in arms if [other.name for other in arms].count(arm.name) > 1}
    if twice or not arms:
        named = f"'{min(twice)}' comes twice" if twice else "there is none"
        raise RecipeError(f"choosing the arms: {named}", advice="give each arm once")
    return tuple(arms)


def _own_arm(text: str, against: str) -> Arm:
    """The arm of a user's description.

    Raises:
        RecipeError: it is none, has another arm's name, or changes what all arms share.
    """
    name, _, sets = (part.strip() for part in text.partition(":"))
    parts = tuple(part.strip() for part in re.split(_NEXT_SETTING, sets) if part.strip())
    if not re.fullmatch(r"\w[\w.-]*", name) or name in _TAKEN or not parts:
        raise RecipeError(
            f"reading the arm '{text}': it has no name that can be a folder's, or no settings",
            advice='write it as "NAME: SECTION.KEY=VALUE, SECTION.KEY=VALUE"',
        )
    if name in ARMS:
        raise RecipeError(
            f"reading the arm '{text}': '{name}' is {ARMS[name].meaning}",
            advice="give it another name",
        )
    shared = [part for part in parts if part.startswith(_SHARED)]
    if shared:
        raise RecipeError(
            f"reading the arm '{text}': all arms have one teacher, the same images and seeds",
            advice=f"leave out {shared[0]}",
        )
    return Arm(name, ", ".join(parts), {}, sets=parts, against=against)


def arms_by_name(
    recipe: Recipe, stored: Sequence[Mapping[str, Any]], asked: Sequence[Arm] | None
) -> dict[str, Arm]:
    """The arms of an ablation by name: those that it has, as `stored`, then those `asked` for; the
    usual ones if there are none.

    Raises:
        RecipeError: one cannot be, has the name of one with other settings, or is to be held
            against one that is not there.
    """
    named = {fact["name"]: _arm_of(fact) for fact in stored}
    for arm in read_arms(DEFAULT_ARMS) if asked is None and not named else asked or ():
        arm_recipe(recipe, arm)
        before = named.setdefault(arm.name, arm)
        if (before.settings, before.sets, before.against) != (arm.settings, arm.sets, arm.against):
            raise RecipeError(
                f"adding the arm '{arm.name}': there is one of that name with other settings",
                advice="give it another name",
            )
    for arm in named.values():
        if arm.against not in (Arm.against, *named):
            raise RecipeError(
                f"holding '{arm.name}' against '{arm.against}': there is no such arm",
                advice=f"they are {', '.join(named)}",
            )
    return named


def _arm_of(fact: Mapping[str, Any]) -> Arm:
    known = {field.name: fact[field.name] for field in fields(Arm) if field.name in fact}
    return Arm(**known | {"sets": tuple(fact["sets"])})


def arm_recipe(recipe: Recipe, arm: Arm) -> Recipe:
    """The recipe of an arm, from one that has what is common.

    Raises:
        RecipeError: it would be another arm's, for want of epochs for hints or of weights to
            inherit; or a setting of the user's cannot hold.
    """
    first, second = recipe.stage1.epochs or 0, recipe.stage2.epochs or 0
    settings = dict(arm.settings)
    if arm.is_long:
        settings["stage2.epochs"] = first + second
    try:
        made = apply_sets(with_settings(recipe, settings), arm.sets)
    except RecipeError as error:
        raise RecipeError(f"making the arm '{arm.name}': {error}", advice=error.advice) from error
    takes_first = arm.is_long or "stage1.epochs" not in arm.settings
    if recipe.stage1.epochs == 0 and not arm.sets and takes_first:
        raise RecipeError(
            f"making the arm '{arm.name}': it takes the epochs of stage 1, which has none",
            advice="give it some (--hint-epochs), or leave that arm out",
        )
    if recipe.student.source and made.student.init != recipe.student.init:
        raise RecipeError(
            f"making the arm '{arm.name}': a student of your own keeps its own first weights",
            advice="leave that arm out",
        )
    return made
