"""The resolved configuration of a run: frozen dataclasses, presets, TOML in and out.

A run is a function of its recipe. `None` means "decided from the teacher and the data when the
run starts"; the decided value is what the run directory stores, so running the stored recipe again
gives the same bits. Layer: errors and settings only; no torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitcompress.errors import RecipeError
from fitcompress.recipe.fields import (
    check_one_of,
    differing_settings,
    flat_settings,
    settings_from_toml,
    settings_to_toml,
    with_settings,
)
from fitcompress.recipe.presets import PRESETS
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

__all__ = [
    "PRESETS",
    "DataRecipe",
    "HintRecipe",
    "OptimRecipe",
    "Recipe",
    "RunRecipe",
    "Stage1Recipe",
    "Stage2Recipe",
    "StudentRecipe",
    "TeacherRecipe",
    "apply_sets",
    "continued_recipe",
    "load_recipe",
    "recipe_from_preset",
    "recipe_settings",
    "recipe_to_toml",
    "resolve_recipe",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All of a run."""

    preset: str = "modern"
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student: StudentRecipe = field(default_factory=StudentRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    hints: HintRecipe = field(default_factory=HintRecipe)
    stage1: Stage1Recipe = field(default_factory=Stage1Recipe)
    stage2: Stage2Recipe = field(default_factory=Stage2Recipe)
    run: RunRecipe = field(default_factory=RunRecipe)

    def __post_init__(self) -> None:
        check_one_of(tuple(PRESETS), "preset", self.preset)
        if self.stage2.hint_weight and self.hints.target == "random-teacher":
            raise RecipeError(
                "stage2.hint_weight needs hints of the teacher whose outputs are learnt, not of"
                " hints.target = random-teacher"
            )

    @property
    def asks_for_hints(self) -> bool:
        """Whether there is a stage 1 where no number of epochs is given for it: where a hint is
        named, or the student does not begin with the teacher's weights. No hints were seen to
        better one that does (examples/reproductions, section 6).
        """
        return not self.student.begins_as_teacher or self.hints != HintRecipe()

    @property
    def learns_hints(self) -> bool:
        """Whether the student is trained on hints, in stage 1 or within stage 2."""
        epochs = self.stage1.epochs
        return bool(self.stage2.hint_weight or (self.asks_for_hints if epochs is None else epochs))


def recipe_from_preset(name: str) -> Recipe:
    """The recipe that a preset stands for: "modern" (the default), "fitnets" or "hinton".

    Raises:
        RecipeError: no preset of that name.

    >>> recipe_from_preset("fitnets").stage2.tau
    3.0
    """
    return with_settings(Recipe(preset=name), PRESETS[name])


def load_recipe(path: Path | str, *, preset: str | None = None) -> Recipe:
    """The recipe in a TOML file, over the preset that it names (or `preset`, if given).

    Raises:
        RecipeError: the file is missing, is not TOML, or holds a setting that cannot hold.
    """
    values = recipe_settings(path)
    named = values.pop("preset", "modern")
    try:
        return with_settings(recipe_from_preset(preset or named), values)
    except RecipeError as error:
        raise RecipeError(f"in the recipe '{path}': {error}", advice=error.advice) from error


def recipe_settings(path: Path | str) -> dict[str, Any]:
    """What a recipe file names, by dotted name and unchecked.

    Raises:
        RecipeError: the file is missing or is not TOML.
    """
    try:
        return settings_from_toml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"cannot read the recipe '{path}': {error}") from error


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every setting written out; `load_recipe` gives it back exactly."""
    return settings_to_toml(recipe)


def apply_sets(recipe: Recipe, sets: Sequence[str]) -> Recipe:
    """The recipe with `section.key=value` texts applied, in order.

    Raises:
        RecipeError: a text without "=", an unknown name, or a value that cannot hold.

    >>> apply_sets(Recipe(), ["stage2.tau=3", "stage1.optim.lr=1e-4"]).stage1.optim.lr
    0.0001
    """
    values = {}
    for text in sets:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise RecipeError(f"cannot apply '{text}'", advice="write it as section.key=value")
        if name == "preset":
            raise RecipeError("a preset is chosen before single settings", advice="use --preset")
        values[name] = value
    return with_settings(recipe, values)


def resolve_recipe(
    *,
    preset: str | None = None,
    config: Path | None = None,
    sets: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe asked for: a preset, below a recipe file, below `sets`, below `settings`.

    Raises:
        RecipeError: as `load_recipe` and `apply_sets`.
    """
    base = load_recipe(config, preset=preset) if config else recipe_from_preset(preset or "modern")
    return with_settings(apply_sets(base, sets), settings or {})


_FREE_ON_RESUME = ("run.out", "run.device", "run.threads", "run.log", "data.num_workers")


def continued_recipe(stored: Recipe, asked: Recipe, path: Path) -> Recipe:
    """The stored recipe of a run that goes on in `path`; where it is and on which hardware, as it
    is asked for now. A run is a function of its recipe: all else may only be repeated. What is None
    or "auto" asks for nothing.

    Raises:
        RecipeError: a setting is asked for that is another one in the stored recipe.
    """
    for name, (now, then) in differing_settings(asked, stored).items():
        if name not in _FREE_ON_RESUME and now not in (None, "auto"):
            raise RecipeError(
                f"cannot go on with '{path}' with {name} = {now!r}: it was started with {then!r}",
                advice="leave that setting out, or choose another --out",
            )
    return with_settings(stored, {name: flat_settings(asked)[name] for name in _FREE_ON_RESUME})
