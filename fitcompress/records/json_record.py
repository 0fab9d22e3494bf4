"""Dataclasses that are objects in a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from fitcompress.errors import RunError

__all__ = ["Record"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object: each field is a key, in the order of the fields.

    A field that is None is left out of the file if None is its default, and written as null
    otherwise.
    """

    def to_dict(self) -> dict[str, Any]:
        """The record, ready for JSON."""
        values = {field: getattr(self, field.name) for field in fields(self)}
        return {
            field.name: _plain(value)
            for field, value in values.items()
            if value is not None or field.default is not None
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The record in a JSON object. Keys that it does not know are ignored; a missing key takes
        the field's default, or None where the field can be None.

        Raises:
            RunError: any other key is missing.
        """
        hints = get_type_hints(cls)
        known = {name: _typed(hint, value[name]) for name, hint in hints.items() if name in value}
        for field in fields(cls):
            if field.name not in known and _is_required(field):
                if NoneType not in get_args(hints[field.name]):
                    raise RunError(
                        f"reading a {cls.__name__}: the key {field.name!r} is missing",
                        code="record-incomplete",
                        advice="The file was changed, or written by a different version. Start"
                        " the run again with --force.",
                        record=cls.__name__,
                        key=field.name,
                    )
                known[field.name] = None
        return cls(**known)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _typed(hint: Any, value: Any) -> Any:
    """The JSON value as the type of a field; numbers and texts are not converted."""
    if value is None:
        return None
    if isinstance(hint, UnionType):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    arguments = get_args(hint)
    if get_origin(hint) is dict:
        return {key: _typed(arguments[1], inner) for key, inner in value.items()}
    if get_origin(hint) is tuple:
        if arguments[-1] is Ellipsis:
            return tuple(_typed(arguments[0], inner) for inner in value)
        return tuple(_typed(*pair) for pair in zip(arguments, value, strict=True))
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_dict(value)
    return value
