"""Settings by dotted name: read, change and write any tree of frozen dataclasses.

Types come from the annotations: `str`, `int`, `float`, `bool`, a `Literal` of texts, tuples of
those, and each of them `| None`. Knows nothing of what the settings mean; imports errors only.
"""

from __future__ import annotations

import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from fitcompress.errors import RecipeError, near_misses

__all__ = [
    "check",
    "check_at_least",
    "check_choices",
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
"""Text for `None` on a command line and in TOML, which has no null."""

_EXPECTED = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def flat_settings(config: Any) -> dict[str, Any]:
    """All settings of the tree by dotted name, in the order of declaration."""
    return dict(_walk(config, ""))


def _walk(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _walk(value, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, value


def differing_settings(config: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Settings that differ between two trees of one type: name -> (value, other value)."""
    values, others = flat_settings(config), flat_settings(other)
    return {name: (values[name], others[name]) for name in values if values[name] != others[name]}


def setting_type(config: Any, name: str) -> Any:
    """The annotation of the setting `name`, such as `float | None`."""
    *sections, last = name.split(".")
    for section in sections:
        config = getattr(config, section)
    return _type_hints(config.__class__)[last]


_type_hints = functools.cache(typing.get_type_hints)  # evaluating annotations takes a millisecond


def with_settings(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy of `config` with the named settings changed; text is converted to the setting's type.

    All values are set at once, so that checks across settings see the final values.

    Raises:
        RecipeError: unknown name (near misses are listed), wrong type, or a failed check.
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
            hint = _type_hints(config.__class__)[item.name]
            changed[item.name] = _converted(values[name], hint, name)
    return replace(config, **changed)


def _unknown(name: str, known: tuple[str, ...]) -> RecipeError:
    inside = [other for other in known if other.startswith(name + ".")]
    if inside:
        return RecipeError(
            f"'{name}' is a section, not a setting",
            code="setting-is-section",
            advice=f"Use one of its settings: {', '.join(inside)}.",
            setting=name,
            settings=inside,
        )
    same_leaf = [other for other in known if other.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]]
    return RecipeError(
        f"unknown setting '{name}'",
        code="setting-unknown",
        advice=f"Did you mean {' or '.join(map(repr, same_leaf))}?"
        if same_leaf
        else near_misses(name, known),
        setting=name,
    )


def _converted(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type that the annotation `hint` names."""
    if isinstance(hint, types.UnionType):
        if value is None or value == _NONE:
            return None
        hint = next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _converted_tuple(value, typing.get_args(hint), name)
    if typing.get_origin(hint) is Literal:
        check_one_of(typing.get_args(hint), name, value)
        return value
    try:
        return _scalar(value, hint)
    except (TypeError, ValueError, KeyError):
        raise _wrong_type(name, _EXPECTED[hint], value) from None


def _wrong_type(name: str, expected: str, got: object) -> RecipeError:
    return RecipeError(
        f"{name} must be {expected}, got {got!r}",
        code="setting-type-wrong",
        setting=name,
        expected=expected,
        got=got,
    )


def _converted_tuple(value: Any, kinds: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """`value` (a sequence, or comma-separated text) as a tuple; `kinds` may end in an ellipsis."""
    items = (value.split(",") if value else []) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise _wrong_type(name, "a list", value)
    if kinds[-1] is not Ellipsis and len(items) != len(kinds):
        raise _wrong_type(name, f"{len(kinds)} values", value)
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
    """The tree as TOML with every setting; `None` is written as "none".

    `settings_from_toml` and `with_settings` restore the same tree.
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
    if isinstance(value, str):  # JSON strings are TOML strings, except that TOML escapes DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value)


def settings_from_toml(text: str) -> dict[str, Any]:
    """The settings in a TOML text by dotted name, unchecked.

    Raises:
        tomllib.TOMLDecodeError: the text is not TOML.

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
    """Raises a RecipeError unless the value of the setting `name` is within its bound."""
    if not holds:
        raise RecipeError(
            f"{name} must be {bound}, got {value!r}",
            code="setting-out-of-bounds",
            setting=name,
            expected=bound,
            got=value,
        )


def check_at_least(least: float, name: str, value: float | None) -> None:
    check(value is None or least <= value < math.inf, name, f"at least {least}", value)


def check_positive(name: str, value: float | None) -> None:
    check(value is None or 0 < value < math.inf, name, "above 0", value)


def check_one_of(choices: tuple[str, ...], name: str, value: object) -> None:
    """Raises a RecipeError with near misses unless `value` is one of `choices`."""
    if value not in choices:
        raise RecipeError(
            f"{name} must be one of {', '.join(choices)}, got {value!r}",
            code="setting-choice-unknown",
            advice=near_misses(str(value), choices),
            setting=name,
            expected=list(choices),
            got=value,
        )


def check_choices(section: str, config: Any) -> None:
    """Checks every setting of a section whose annotation is a `Literal`.

    Raises:
        RecipeError: the value is none of the annotation's.
    """
    for name, hint in _type_hints(config.__class__).items():
        if typing.get_origin(hint) is Literal:
            check_one_of(typing.get_args(hint), f"{section}.{name}", getattr(config, name))
