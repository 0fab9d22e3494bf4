"""Settings by dotted name: any tree of frozen dataclasses, changed by name and written as TOML.

Types come from the annotations: `str`, `int`, `float`, `bool`, tuples of those, and each of them
`| None`. Layer: errors only; no torch, and nothing about what the settings mean.
"""

from __future__ import annotations

import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from fitcompress.errors import RecipeError, near_misses

__all__ = [
    "check",
    "check_at_least",
    "check_one_of",
    "check_positive",
    "differing_settings",
    "flat_settings",
    "setting_type",
    "settings_from_toml",
    "settings_to_toml",
    "with_settings",
]

Config = TypeVar("Config")

_NONE = "none"
"""How `None` is written in TOML, which has no word for it, and on a command line."""

_EXPECTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def flat_settings(config: Any) -> dict[str, Any]:
    """Every setting of the tree by its dotted name, in the order of declaration."""
    return dict(_walk(config, ""))


def _walk(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def differing_settings(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """The settings in which two trees of one type differ: name -> (value here, value there)."""
    here, there = flat_settings(config), flat_settings(other)
    return {name: (here[name], there[name]) for name in here if here[name] != there[name]}


def setting_type(config: Any, name: str) -> Any:
    """The annotation of the setting `name`, for instance `float | None`."""
    *sections, last = name.split(".")
    for section in sections:
        config = getattr(config, section)
    return typing.get_type_hints(type(config))[last]


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with the named settings changed; text is read as the setting's type.

    All values go in together, so checks that compare settings see the final ones.

    Raises:
        RecipeError: an unknown name (with near misses), a value of the wrong type, or one that a
            check refuses.
    """
    known = flat_settings(config)
    for name in values:
        if name not in known:
            raise _unknown(name, tuple(known))
    return typing.cast(Config, _rebuilt(config, values, ""))


def _rebuilt(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    changed = {}
    for item in fields(config):
        name, current = prefix + item.name, getattr(config, item.name)
        if is_dataclass(current):
            changed[item.name] = _rebuilt(current, values, name + ".")
        elif name in values:
            hint = typing.get_type_hints(type(config))[item.name]
            changed[item.name] = _converted(values[name], hint, name)
    return replace(config, **changed)


def _unknown(name: str, known: tuple[str, ...]) -> RecipeError:
    same_leaf = [other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    inside = [other for other in known if other.startswith(name + ".")]
    if inside:
        return RecipeError(
            f"'{name}' is a section, not a setting", advice=f"it holds {', '.join(inside)}"
        )
    advice = (
        f"did you mean {' or '.join(map(repr, same_leaf))}?"
        if same_leaf
        else near_misses(name, known)
    )
    return RecipeError(f"there is no setting '{name}'", advice=advice)


def _converted(value: Any, hint: Any, name: str) -> Any:
    """`value` as the annotation `hint` wants it."""
    if isinstance(hint, types.UnionType):
        if value is None or value == _NONE:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _converted_tuple(value, typing.get_args(hint), name)
    try:
        return _scalar(value, hint)
    except (TypeError, ValueError, KeyError):
        raise RecipeError(f"'{name}' must be {_EXPECTED[hint]}, got {value!r}") from None


def _converted_tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """`value` (a sequence, or text with commas) as a tuple of `kinds` (may end in an ellipsis)."""
    items = (value.split(",") if value else []) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise RecipeError(f"'{name}' must be a list, got {value!r}")
    if kinds[-1] is not Ellipsis and len(items) != len(kinds):
        raise RecipeError(f"'{name}' must have {len(kinds)} values, got {value!r}")
    return tuple(_converted(item, kinds[0], name) for item in items)


def _scalar(value: Any, kind: type) -> Any:
    if kind is str:
        if not isinstance(value, str):
            raise TypeError(value)
        return value
    if kind is bool:
        return {"true": True, "false": False}[str(value).strip().lower()]
    if isinstance(value, bool):
        raise TypeError(value)
    return int(str(value)) if kind is int else float(value)


def settings_to_toml(config: Any) -> str:
    """The whole tree as TOML, every setting written out; `None` is the text "none".

    `settings_from_toml` and `with_settings` give the same tree back.
    """
    return "\n".join(_toml_lines(config, "")).lstrip("\n") + "\n"


def _toml_lines(config: Any, section: str) -> Iterator[str]:
    if section:
        yield f"\n[{section}]"
    values = {item.name: getattr(config, item.name) for item in fields(config)}
    for name, value in values.items():
        if not is_dataclass(value):
            yield f"{name} = {_toml_value(value)}"
    for name, value in values.items():
        if is_dataclass(value):
            yield from _toml_lines(value, f"{section}.{name}" if section else name)


def _toml_value(value: Any) -> str:
    if value is None:
        return f'"{_NONE}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(
        value, str
    ):  # a JSON string is a TOML string but for DEL, which TOML wants escaped
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)


def settings_from_toml(text: str) -> dict[str, Any]:
    """The settings in a TOML text by dotted name.

    Raises:
        tomllib.TOMLDecodeError: not TOML.

    >>> settings_from_toml("preset = 'modern'\\n[stage1.optim]\\nlr = 0.1")
    {'preset': 'modern', 'stage1.optim.lr': 0.1}
    """
    return dict(_flattened(tomllib.loads(text), ""))


def _flattened(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def check(holds: bool, name: str, bound: str, value: object) -> None:
    if not holds:
        raise RecipeError(f"{name} must be {bound}, got {value!r}")


def check_at_least(least: float, name: str, value: float | None) -> None:
    check(value is None or least <= value < math.inf, name, f"at least {least}", value)


def check_positive(name: str, value: float | None) -> None:
    check(value is None or 0 < value < math.inf, name, "above 0", value)


def check_one_of(choices: tuple[str, ...], name: str, value: str) -> None:
    if value not in choices:
        raise RecipeError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}",
            advice=near_misses(str(value), choices),
        )
