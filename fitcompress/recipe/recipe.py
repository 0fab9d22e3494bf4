"""The configuration of a run: presets, recipe files and single settings become one `Recipe`.

A run is a function of its recipe. `None` means "decided from the teacher and the data when the run
starts"; the run directory stores the decided value, so running the stored recipe again reproduces
the run bit by bit.
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
    """All settings of a run, by section."""

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
                "stage2.hint_weight must be 0 if hints.target is random-teacher: stage 2 runs the"
                " trained teacher only",
                code="hint-weight-random-teacher",
                advice="Set stage2.hint_weight to 0, or choose another hints.target.",
                hint_weight=self.stage2.hint_weight,
            )

    @property
    def trains_hints_by_default(self) -> bool:
        """Whether stage 1 runs if its number of epochs is not set: if a hint is named, or if the
        student does not inherit the teacher's weights. Hints did not improve students that do
        (examples/reproductions, section 6).
        """
        return not self.student.inherits_weights or self.hints != HintRecipe()

    @property
    def learns_hints(self) -> bool:
        """Whether the student is trained on hints, in stage 1 or within stage 2."""
        epochs = self.stage1.epochs
        return bool(
            self.stage2.hint_weight or (self.trains_hints_by_default if epochs is None else epochs)
        )


def recipe_from_preset(name: str) -> Recipe:
    """The recipe of a preset: "modern" (the default), "fitnets" or "hinton".

    Raises:
        RecipeError: unknown preset.

    >>> recipe_from_preset("fitnets").stage2.tau
    3.0
    """
    return with_settings(Recipe(preset=name), PRESETS[name])


def load_recipe(path: Path | str, *, preset: str | None = None) -> Recipe:
    """The recipe in a TOML file, on top of the preset that it names (or of `preset`, if given).

    Raises:
        RecipeError: the file is missing, is not TOML, or holds an unknown or invalid setting.
    """
    values = recipe_settings(path)
    named = values.pop("preset", "modern")
    try:
        return with_settings(recipe_from_preset(preset or named), values)
    except RecipeError as error:
        raise error.reworded(f"in the recipe '{path}': {error}") from error


def recipe_settings(path: Path | str) -> dict[str, Any]:
    """The settings in a recipe file by dotted name, unchecked.

    Raises:
        RecipeError: the file is missing or is not TOML.
    """
    try:
        return settings_from_toml(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(
            f"reading the recipe '{path}': {getattr(error, 'strerror', None) or error}",
            code="recipe-unreadable",
            advice="Pass a recipe file in TOML, such as the recipe.toml of a run.",
            path=str(path),
        ) from error


def recipe_to_toml(recipe: Recipe) -> str:
    """The recipe as TOML with every setting; `load_recipe` restores it exactly."""
    return settings_to_toml(recipe)


def apply_sets(recipe: Recipe, sets: Sequence[str]) -> Recipe:
    """The recipe with texts such as `section.key=value` applied, in order.

    Raises:
        RecipeError: a text without "=", an unknown setting, or an invalid value.

    >>> apply_sets(Recipe(), ["stage2.tau=3", "stage1.optim.lr=1e-4"]).stage1.optim.lr
    0.0001
    """
    values = {}
    for text in sets:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise RecipeError(
                f"reading the setting '{text}': expected SECTION.KEY=VALUE",
                code="set-without-value",
                advice="For example, write stage2.tau=3.",
                text=text,
            )
        if name == "preset":
            raise RecipeError(
                "reading --set: the preset has a flag of its own",
                code="set-preset",
                advice="Use --preset.",
                preset=value,
            )
        values[name] = value
    return with_settings(recipe, values)


def resolve_recipe(
    *,
    preset: str | None = None,
    config: Path | None = None,
    sets: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of all sources; precedence, lowest to highest: `preset`, `config` (a recipe file),
    `sets`, `settings`.

    Raises:
        RecipeError: as `load_recipe` and `apply_sets`.
    """
    base = load_recipe(config, preset=preset) if config else recipe_from_preset(preset or "modern")
    return with_settings(apply_sets(base, sets), settings or {})


_FREE_ON_RESUME = ("run.out", "run.device", "run.threads", "run.log", "data.num_workers")


def continued_recipe(stored: Recipe, requested: Recipe, path: Path) -> Recipe:
    """The recipe of a resumed run in `path`: the stored one, with directory and hardware as
    requested now. All other settings may only be repeated; None and "auto" request nothing.

    Raises:
        RecipeError: a requested setting differs from the stored one.
    """
    for name, (new, old) in differing_settings(requested, stored).items():
        if name not in _FREE_ON_RESUME and new not in (None, "auto"):
            raise RecipeError(
                f"resuming '{path}': expected {name} = {old!r} as in the original run, got {new!r}",
                code="resume-contradiction",
                advice="Drop this setting, or choose another --out.",
                path=str(path),
                setting=name,
                expected=old,
                got=new,
            )
    free = flat_settings(requested)
    return with_settings(stored, {name: free[name] for name in _FREE_ON_RESUME})
