"""What a command was asked: flags become one `Request`, and a request becomes a recipe.

`takes` gives Typer the signature that the flag groups stand for, so that no command repeats them.
"""

from __future__ import annotations

import inspect
import itertools
import os
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import typer

from fitcompress.ablation.arms import COMMON
from fitcompress.cli.console import ReportForm
from fitcompress.cli.failures import answering_failures
from fitcompress.cli.flags import Flag, Group
from fitcompress.cli.progress import live_progress
from fitcompress.errors import RunError
from fitcompress.events import Emit
from fitcompress.recipe.fields import flat_settings, setting_type, with_settings
from fitcompress.recipe.presets import PRESETS
from fitcompress.recipe.recipe import (
    Recipe,
    apply_sets,
    continued_recipe,
    load_recipe,
    recipe_settings,
    resolve_recipe,
)
from fitcompress.rundir import RunDir

__all__ = [
    "Request",
    "ablation_recipe",
    "fresh_path",
    "run_recipe",
    "takes",
    "training_recipe",
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """All that the shared flags said."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """By dotted name, only those that were given."""
    preset: str | None = None
    config: Path | None = None
    sets: tuple[str, ...] = ()
    as_json: bool = False
    quiet: bool = False

    def recipe(self, **more: Any) -> Recipe:
        """The recipe asked for; `more` settings by name with "__" for the dot.

        Raises:
            RecipeError: a setting that is unknown or cannot hold.
        """
        settings = {name.replace("__", "."): value for name, value in more.items()}
        return resolve_recipe(
            preset=self.preset,
            config=self.config,
            sets=self.sets,
            settings={**self.settings, **settings},
        )

    def recipe_of_teacher(self, teacher: str | None) -> Recipe:
        """The recipe asked for, which must have a teacher: the flag's, or the recipe file's.

        Raises:
            typer.BadParameter: it has none.
            RecipeError: as `recipe`.
        """
        recipe = self.recipe(**({"teacher__source": teacher} if teacher else {}))
        if not recipe.teacher.source:
            raise typer.BadParameter(
                "give a timm name, a file or package.module:factory", param_hint="--teacher"
            )
        return recipe

    @property
    def report_form(self) -> ReportForm:
        """How a command that ends in a report shows it."""
        return "json" if self.as_json else "text"

    def progress(self) -> AbstractContextManager[Emit]:
        """Shows the events of the work inside, unless asked to be quiet."""
        return live_progress(quiet=self.quiet)


def run_recipe(
    request: Request,
    *,
    teacher: str | None,
    out: Path | None,
    resume: bool,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Recipe, Path]:
    """The recipe of a run and its directory: a fresh one, or with `resume` the stored one.

    A run that was stopped before its recipe was written is started again with the flags.

    fixed: settings that the command decides, on which a resumed run does not insist.

    Raises:
        typer.BadParameter: no teacher is named.
        RecipeError: as `Request.recipe`; or a flag contradicts the run that is resumed.
        RunError: there is no run to resume, or several processes have no common directory.
    """
    if resume:
        run = RunDir(out) if out else RunDir.newest()
        if run.is_run() or not teacher:
            return _resumed_recipe(request, teacher, RunDir.open(run.path), fixed), run.path
    recipe = request.recipe_of_teacher(teacher)
    named = out or (Path(recipe.run.out) if recipe.run.out else None)
    if named is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RunError(
            "choosing a run directory: several processes share it, so it has to be named",
            advice="pass --out, a directory that all of them see",
        )
    run_path = named or fresh_path(recipe.teacher.source, Path("runs"))
    return with_settings(recipe, {"run.out": str(run_path)}), run_path


def ablation_recipe(
    request: Request, *, teacher: str | None, out: Path | None, resume: bool
) -> tuple[Recipe, Path]:
    """The recipe of all arms of an ablation and its directory; with `resume` the stored one.

    Raises:
        typer.BadParameter: no teacher is named, or no directory to resume.
        RecipeError: as `run_recipe`.
    """
    if not resume:
        return run_recipe(request, teacher=teacher, out=out, resume=False)
    return _continued_recipe(request, teacher, out, "teacher", COMMON)


def training_recipe(
    request: Request, *, model: str | None, out: Path | None, resume: bool, force: bool
) -> tuple[Recipe, Path]:
    """The recipe of a teacher's training and its model folder; with `resume` the stored one.

    Raises:
        typer.BadParameter: no model is named, or no folder to resume.
        RecipeError: as `run_recipe`.
        RunError: the folder holds something, and `force` is off.
    """
    if resume:
        return _continued_recipe(request, model, out, "training", {})
    if not model:
        raise typer.BadParameter("name the model to train", param_hint="--model")
    folder = free_folder(out or fresh_path(model, Path("teachers")), force=force)
    return request.recipe(teacher__source=model, run__out=str(folder)), folder


def _continued_recipe(
    request: Request,
    teacher: str | None,
    out: Path | None,
    inner: str,
    fixed: Mapping[str, Any],
) -> tuple[Recipe, Path]:
    """That of a directory whose recipe lies in the directory `inner` below it."""
    if out is None:
        raise typer.BadParameter("give the directory to go on in", param_hint="--out")
    if not teacher and not RunDir(out / inner).is_run():
        raise RunError(
            f"going on in '{out}': nothing was started there",
            advice="leave out --resume, or give the --out of then",
        )
    recipe, _ = run_recipe(request, teacher=teacher, out=out / inner, resume=True, fixed=fixed)
    return with_settings(recipe, {"run.out": str(out)}), out


def _resumed_recipe(
    request: Request, teacher: str | None, run: RunDir, fixed: Mapping[str, Any]
) -> Recipe:
    """The stored recipe of a run that goes on, which flags may only repeat.

    fixed: settings that the command decides, whatever the flags say.
    """
    stored = load_recipe(run.recipe_path)
    named = recipe_settings(request.config) if request.config else {}
    flags = {**request.settings, **({"teacher.source": teacher} if teacher else {})}
    asked = with_settings(apply_sets(with_settings(stored, named), request.sets), flags)
    if request.preset:
        asked = replace(asked, preset=request.preset)
    asked = with_settings(asked, {**fixed, "run.out": str(run.path)})
    return continued_recipe(stored, asked, run.path)


def fresh_path(name: str, root: Path) -> Path:
    """The first of `root/name-1`, `root/name-2`... that is not there yet.

    `name`: a path, a timm name, or `package.module:factory`; a suffix and what stands before the
    last slash or colon are left out.
    """
    stem = Path(name.rsplit(":", 1)[-1]).stem or "run"
    return next(path for n in itertools.count(1) if not (path := root / f"{stem}-{n}").exists())


def free_folder(path: Path, *, force: bool) -> Path:
    """`path`, after a look that nothing is there which a result would overwrite.

    Raises:
        RunError: it holds something and `force` is off.
    """
    if not force and path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(
            f"cannot write to '{path}': there is something already",
            advice="choose another --out, or replace it with --force",
        )
    return path


def takes(
    *groups: Group, recipe: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a Typer command of `command(request, **own)`, with the groups and the shared flags.

    `recipe`: whether the command builds a recipe and so takes --preset, --config and --set.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        flags = {flag.argument: flag for group in groups for flag in group.flags}
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        shared = [*(_RECIPE_PARAMETERS if recipe else []), *_OUTPUT_PARAMETERS]
        parameters = [*own, *itertools.chain(*map(_group_parameters, groups)), *shared]

        def run(**given: Any) -> None:
            with answering_failures(debug=given.pop("debug")):
                arguments = {parameter.name: given.pop(parameter.name) for parameter in own}
                command(_request(flags, given), **arguments)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return wrap


def _request(flags: Mapping[str, Flag], given: Mapping[str, Any]) -> Request:
    settings = {}
    for argument, flag in flags.items():
        value = given[argument]
        if value is not None and value is not False:  # 0 is an answer
            settings.update(dict.fromkeys(flag.settings.split(), _flag_value(flag, value)))
    return Request(
        settings=settings,
        preset=given.get("preset"),
        config=given.get("config"),
        sets=tuple(given.get("sets") or ()),
        as_json=given["as_json"],
        quiet=given["quiet"],
    )


def _flag_value(flag: Flag, value: Any) -> Any:
    if flag.constant is not None:
        return flag.constant
    if isinstance(value, list):
        return ",".join(value)
    return flag.parse(value) if isinstance(value, str) else value


def _group_parameters(group: Group) -> Iterator[inspect.Parameter]:
    defaults = flat_settings(Recipe())
    for flag in group.flags:
        default = defaults[flag.settings.split()[0]]
        is_shown = flag.constant is None and default not in (None, "", ())
        text = f"{flag.help} Default: {default}." if is_shown else flag.help
        option = typer.Option(flag.name, help=text, rich_help_panel=group.panel)
        absent = None if flag.constant is None else False
        yield _parameter(flag.argument, _flag_type(flag), option, absent)


def _flag_type(flag: Flag) -> Any:
    """What Typer reads: numbers as numbers, layers as a list, all else as text."""
    if flag.constant is not None:
        return bool
    hint = setting_type(Recipe(), flag.settings.split()[0])
    if typing.get_origin(hint) is Literal:
        return hint | None
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if tuple[str, ...] in kinds:
        return list[str] | None
    return next((kind for kind in (int, float) if kind in kinds), str) | None


def _parameter(name: str, kind: Any, option: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
    )


_RECIPE_PARAMETERS = [
    _parameter(
        "preset",
        Literal[tuple(PRESETS)] | None,
        typer.Option("--preset", help="Where the settings start.", rich_help_panel="Recipe"),
        None,
    ),
    _parameter(
        "config",
        Path | None,
        typer.Option(
            "--config", help="A recipe file (TOML), over the preset.", rich_help_panel="Recipe"
        ),
        None,
    ),
    _parameter(
        "sets",
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="One setting, over the recipe file; repeat it for more.",
            rich_help_panel="Recipe",
        ),
        None,
    ),
]

_OUTPUT_PARAMETERS = [
    _parameter(
        "as_json",
        bool,
        typer.Option("--json", help="Print JSON only.", rich_help_panel="Output"),
        False,
    ),
    _parameter(
        "quiet",
        bool,
        typer.Option("--quiet", help="Results only, no progress.", rich_help_panel="Output"),
        False,
    ),
    _parameter(
        "debug",
        bool,
        typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Output"),
        False,
    ),
]
