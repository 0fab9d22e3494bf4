"""Python text in which numbers, and names of values, are still open.

A number may become an argument of a class once all modules of the class are known, and what a value
is called depends on where the text ends up. Both are parts of a `Code` between plain strings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

__all__ = ["COLON", "Code", "Colon", "Number", "Ref", "code", "joined", "number"]


@dataclass(frozen=True, eq=False)
class Number:
    """A number, or a tuple of numbers, at one place of the text."""

    values: tuple[Any, ...]
    """Its value in each module that shares the text."""
    role: str
    """What it is: an option, or "layer.option"."""
    keyword: str = ""
    """Writes `, keyword=value`, or nothing at the default."""
    default: Any = None
    is_count: bool = False
    """Whether it counts repeated modules."""
    in_body: bool = False
    """Whether the forward method reads it."""

    @property
    def layout(self) -> Any:
        """Everything except the values."""
        return self.role, self.keyword, repr(self.default)

    @property
    def is_constant(self) -> bool:
        return len(set(map(repr, self.values))) == 1


@dataclass(frozen=True)
class Ref:
    """A value, or a list of values, under whatever name it has where the text ends up."""

    slot: Node | tuple[Node, ...]
    is_tight: bool = False
    """Whether an expression written here needs brackets."""
    is_subject: bool = False
    """Whether a method or an index applies to it."""


@dataclass(frozen=True)
class Colon:
    """The colon of a slice; spaces surround it if a bound is not a plain number."""


Part = str | Number | Ref | Colon


@dataclass(frozen=True)
class Code:
    """Python as strings and open parts; never two strings in a row."""

    parts: tuple[Part, ...] = ()

    @property
    def open_numbers(self) -> list[Number]:
        return [part for part in self.parts if isinstance(part, Number)]

    @property
    def refs(self) -> list[Ref]:
        return [part for part in self.parts if isinstance(part, Ref)]

    @property
    def layout(self) -> Any:
        """Equal for texts that differ only in the values of numbers."""
        return tuple(p.layout if isinstance(p, Number) else p for p in self.parts)

    @property
    def numbers(self) -> Any:
        return tuple(repr(number.values) for number in self.open_numbers)

    @property
    def sketch(self) -> str:
        """The text with two digits for each number."""
        return self.filled(lambda _: "99")

    def within(self, frame: str) -> Code:
        """The code in place of the braces in `frame`."""
        before, _, after = frame.partition("{}")
        return code(before, self, after)

    def resolved(self, write: Callable[[Ref], Code]) -> Code:
        """The code with names of values written out."""
        return code(*(write(p) if isinstance(p, Ref) else Code((p,)) for p in self.parts))

    def renumbered(self, numbers: Iterable[Number]) -> Code:
        """The code with other numbers, in order."""
        given = iter(numbers)
        return Code(tuple(next(given) if isinstance(p, Number) else p for p in self.parts))

    def filled(self, write: Callable[[Number], str]) -> str:
        """The text with each number as `write` spells it; no names of values may be open.

        >>> code("x[", number(2, "start"), COLON, "]").filled(lambda number: "self.start")
        'x[self.start :]'
        """
        text = "".join(self._text(place, write) for place in range(len(self.parts)))
        return text.replace("(, ", "(")  # an option by keyword that comes first

    def _text(self, place: int, write: Callable[[Number], str]) -> str:
        match self.parts[place]:
            case str(text):
                return text
            case Number() as number:
                return write(number)
            case Colon():
                beside = (self.parts[place - 1], self.parts[place + 1])
                start, end = (write(p) if isinstance(p, Number) else "" for p in beside)
                space = " " if "self." in start + end else ""
                return f"{space if start else ''}:{space if end else ''}"
        raise AssertionError(f"'{self.parts[place]}' has no name yet")


COLON = Code((Colon(),))


def code(*pieces: str | Code) -> Code:
    """The pieces one after the other.

    >>> code("f(", code("x", ")")).parts
    ('f(x)',)
    """
    parts: list[Part] = []
    for piece in pieces:
        for part in (piece,) if isinstance(piece, str) else piece.parts:
            last = parts[-1] if parts else None
            if isinstance(part, str) and isinstance(last, str):
                parts[-1] = last + part
            elif part != "":
                parts.append(part)
    return Code(tuple(parts))


def joined(separator: str, pieces: Sequence[str | Code]) -> Code:
    """The pieces with the separator between them."""
    return code(*pieces[:1], *(part for piece in pieces[1:] for part in (separator, piece)))


def number(value: Any, role: str, keyword: str = "", default: Any = None) -> Code:
    """A number of a single module. With a keyword, `, keyword=value` or nothing at the default."""
    return Code((Number((value,), role, keyword, default),))
