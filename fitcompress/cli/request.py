"""Requests: flags become one `Request`, and a request becomes a recipe.

`takes` builds a command's Typer signature from flag groups, so that no command repeats them.
"""

from __future__ import annotations

import inspect
import itertools
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
from fitcompress.cli.failures import reported_failures
from fitcompress.cli.flags import Flag, Group, with_default
from fitcompress.cli.progress import live_progress
from fitcompress.errors import RunError
from fitcompress.events import Emit
from fitcompress.ranks import num_processes
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
    """Values of the flags that commands share."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings given by flags, by dotted name."""
    preset: str | None = None
    config: Path | None = None
    sets: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    """Export formats, by name."""
    as_json: bool = False
    quiet: bool = False

    def recipe(self, **more: Any) -> Recipe:
        """The requested recipe, with `more` settings by name, "__" for the dot.

        Raises:
            RecipeError: an unknown setting or an invalid value.
        """
        settings = {name.replace("__", "."): value for name, value in more.items()}
        return resolve_recipe(
            preset=self.preset,
            config=self.config,
            sets=self.sets,
            settings={**self.settings, **settings},
        )

    def recipe_of_teacher(self, teacher: str | None) -> Recipe:
        """The requested recipe, with a teacher from the flag or the recipe file.

        Raises:
            typer.BadParameter: there is no teacher.
            RecipeError: see `recipe`.
        """
        recipe = self.recipe(**({"teacher__source": teacher} if teacher else {}))
        if not recipe.teacher.source:
            raise typer.BadParameter(
                "expected a timm name, a file, a model folder or package.module:factory, got none",
                param_hint="--teacher",
            )
        return recipe

    @property
    def report_form(self) -> ReportForm:
        """Output form of commands that end in a report."""
        return "json" if self.as_json else "text"

    def progress(self) -> AbstractContextManager[Emit]:
        """Context whose events are shown as progress, unless --quiet is set."""
        return live_progress(quiet=self.quiet)


def run_recipe(
    request: Request,
    *,
    teacher: str | None,
    out: Path | None,
    resume: bool,
    fixed: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Recipe, Path]:
    """The recipe and directory of a new run, or with `resume` those of the stored run.

    A run that was stopped before its recipe was written is started again from the flags.

    Args:
        request: the shared flags.
        teacher: value of --teacher.
        out: run directory; None: a new one under `runs/`, or the newest with `resume`.
        resume: whether to continue a stored run.
        fixed: settings that the command sets itself, exempt from the check against the stored run.

    Raises:
        typer.BadParameter: no teacher is named.
        RecipeError: see `Request.recipe`; or a flag contradicts the resumed run.
        RunError: no run to resume, or several processes without --out.
    """
    if resume:
        run = RunDir(out) if out else RunDir.newest()
        if run.is_run() or not teacher:
            return _resumed_recipe(request, teacher, RunDir.open(run.path), fixed), run.path
    recipe = request.recipe_of_teacher(teacher)
    named = out or (Path(recipe.run.out) if recipe.run.out else None)
    if named is None and num_processes() > 1:
        raise RunError(
            "choosing a run directory: expected --out with several processes, got none",
            code="out-required",
            advice="Pass --out with a directory that all processes can access.",
            processes=num_processes(),
        )
    run_path = named or fresh_path(recipe.teacher.source, Path("runs"))
    return with_settings(recipe, {"run.out": str(run_path)}), run_path


def ablation_recipe(
    request: Request, *, teacher: str | None, out: Path | None, resume: bool
) -> tuple[Recipe, Path]:
    """The recipe that the arms of an ablation share, and its directory.

    Raises:
        typer.BadParameter: no teacher is named, or no directory to resume.
        RecipeError: see `run_recipe`.
        RunError: see `run_recipe`.
    """
    if not resume:
        return run_recipe(request, teacher=teacher, out=out, resume=False)
    return _continued_recipe(request, teacher, out, "teacher", COMMON)


def training_recipe(
    request: Request, *, model: str | None, out: Path | None, resume: bool, force: bool
) -> tuple[Recipe, Path]:
    """The recipe of a teacher's fine-tuning, and its model folder.

    Raises:
        typer.BadParameter: no model is named, or no folder to resume.
        RecipeError: see `run_recipe`.
        RunError: the folder is not empty and `force` is off.
    """
    if resume:
        return _continued_recipe(request, model, out, "training", {})
    if not model:
        raise typer.BadParameter("expected a model to fine-tune, got none", param_hint="--model")
    folder = free_folder(out or fresh_path(model, Path("teachers")), force=force)
    return request.recipe(teacher__source=model, run__out=str(folder)), folder


def _continued_recipe(
    request: Request,
    teacher: str | None,
    out: Path | None,
    inner: str,
    fixed: Mapping[str, Any],
) -> tuple[Recipe, Path]:
    """The recipe of a resumed directory that stores it in its subdirectory `inner`."""
    if out is None:
        raise typer.BadParameter("expected the directory to resume, got none", param_hint="--out")
    if not teacher and not RunDir(out / inner).is_run():
        raise RunError(
            f"resuming '{out}': nothing was started there",
            code="nothing-to-resume",
            advice="Drop --resume, or pass the original --out.",
            path=str(out),
        )
    recipe, _ = run_recipe(request, teacher=teacher, out=out / inner, resume=True, fixed=fixed)
    return with_settings(recipe, {"run.out": str(out)}), out


def _resumed_recipe(
    request: Request, teacher: str | None, run: RunDir, fixed: Mapping[str, Any]
) -> Recipe:
    """The stored recipe of a resumed run, which flags may only repeat."""
    stored = load_recipe(run.recipe_path)
    named = recipe_settings(request.config) if request.config else {}
    flags = {**request.settings, **({"teacher.source": teacher} if teacher else {})}
    requested = with_settings(apply_sets(with_settings(stored, named), request.sets), flags)
    if request.preset:
        requested = replace(requested, preset=request.preset)
    requested = with_settings(requested, {**fixed, "run.out": str(run.path)})
    return continued_recipe(stored, requested, run.path)


def fresh_path(name: str, root: Path) -> Path:
    """The first of `root/stem-1`, `root/stem-2`... that does not exist.

    `name`: a path, a timm name or `package.module:factory`; its stem is the part after the last
    slash or colon, without a suffix.
    """
    stem = Path(name.rsplit(":", 1)[-1]).stem or "run"
    return next(path for n in itertools.count(1) if not (path := root / f"{stem}-{n}").exists())


def free_folder(path: Path, *, force: bool) -> Path:
    """`path`, if it is empty or may be replaced.

    Raises:
        RunError: it is not empty and `force` is off.
    """
    if not force and path.exists() and (path.is_file() or any(path.iterdir())):
        raise RunError(
            f"writing to '{path}': expected an empty or new folder, got existing files",
            code="folder-not-empty",
            advice="Choose another --out, or replace the files with --force.",
            path=str(path),
        )
    return path


def takes(
    *groups: Group, recipe: bool = True, formats: Group | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a Typer command of `command(request, **own)`.

    Args:
        groups: flags for settings.
        recipe: whether the command takes --preset, --config and --set.
        formats: flags for export formats.
    """

    def wrap(command: Callable[..., None]) -> Callable[..., None]:
        flags = {flag.argument: flag for group in groups for flag in group.flags}
        format_flags = formats.flags if formats else ()
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        generated = [*groups, *([formats] if formats else [])]
        shared = [*(_RECIPE_PARAMETERS if recipe else []), *_OUTPUT_PARAMETERS]
        parameters = [*own, *itertools.chain(*map(_group_parameters, generated)), *shared]

        def run(**given: Any) -> None:
            with reported_failures(debug=given.pop("debug"), as_json=given["as_json"]):
                arguments = {parameter.name: given.pop(parameter.name) for parameter in own}
                chosen = tuple(flag.target for flag in format_flags if given[flag.argument])
                command(replace(_request(flags, given), formats=chosen), **arguments)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        return run

    return wrap


def _request(flags: Mapping[str, Flag], given: Mapping[str, Any]) -> Request:
    settings = {}
    for argument, flag in flags.items():
        value = given[argument]
        if value is not None and value is not False:  # 0 is a value
            settings.update(dict.fromkeys(flag.target.split(), _flag_value(flag, value)))
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
    for flag in group.flags:
        option = typer.Option(flag.name, help=_flag_help(flag), rich_help_panel=group.panel)
        absent = None if flag.constant is None else False
        yield _parameter(flag.argument, _flag_type(flag), option, absent)


def _flag_help(flag: Flag) -> str:
    if flag.constant is not None:
        return flag.help
    default = flag.default or flat_settings(Recipe())[flag.first_setting]
    return flag.help if default in (None, "", ()) else with_default(flag.help, default)


def _flag_type(flag: Flag) -> Any:
    """The type that Typer parses: choices, numbers and lists; all other settings are text."""
    if flag.constant is not None:
        return bool
    hint = setting_type(Recipe(), flag.first_setting)
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


def _shared(
    name: str, flag: str, kind: Any, panel: str, text: str, default: Any = None, **more: Any
) -> inspect.Parameter:
    option = typer.Option(flag, help=text, rich_help_panel=panel, **more)
    return _parameter(name, kind, option, default)


_RECIPE_PARAMETERS = [
    _shared(
        "preset",
        "--preset",
        Literal[tuple(PRESETS)] | None,
        "Recipe",
        with_default("Preset that all settings start from.", "modern"),
    ),
    _shared(
        "config",
        "--config",
        Path | None,
        "Recipe",
        "Recipe file (TOML), such as a run's recipe.toml; overrides the preset.",
    ),
    _shared(
        "sets",
        "--set",
        list[str] | None,
        "Recipe",
        "Single setting, such as stage2.tau=3; overrides the recipe file. Repeat for more.",
        metavar="SECTION.KEY=VALUE",
    ),
]

_OUTPUT_PARAMETERS = [
    _shared("as_json", "--json", bool, "Output", "Print results and errors as JSON.", False),
    _shared("quiet", "--quiet", bool, "Output", "Print results only, no progress.", False),
    _shared("debug", "--debug", bool, "Output", "Print the error code and the traceback.", False),
]
