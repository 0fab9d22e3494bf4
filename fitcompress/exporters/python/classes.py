"""Finds which modules share a class, and merges their code.

Modules whose code differs only in numbers share a class. Numbers that are equal in all of them stay
in the code; the others become arguments, one for all numbers that always agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, TypeVar

from fitcompress.exporters.python.code import Code, Number, code, joined
from fitcompress.exporters.python.forward import Forward
from fitcompress.exporters.python.modules import Piece

__all__ = ["Argument", "ClassCode", "Content", "Draft", "Made", "Series", "merge", "merged_numbers"]

_LONGEST_PERIOD = 4
_MOST_RUNS = 3
"""A list with more runs of equal modules is written as one loop over their arguments."""


@dataclass(frozen=True)
class Made:
    """An instance of a class in the file."""

    draft: Draft

    @property
    def layout(self) -> Any:
        return ("made", self.draft.number)

    @property
    def numbers(self) -> Any:
        return self.draft.numbers


@dataclass(frozen=True)
class Series:
    """Modules in a row."""

    holder: str
    """The call that takes them, in braces."""
    items: tuple[Content, ...]
    as_list: bool = False
    """Whether it takes them as one list instead of one by one."""

    @property
    def runs(self) -> list[Run]:
        return _runs(self.items)

    @property
    def layout(self) -> Any:
        return (self.holder, tuple(run.layout for run in self.runs))

    @property
    def numbers(self) -> Any:
        return tuple(item.numbers for item in self.items)


Content = Code | Made | Series


@dataclass(frozen=True)
class Run:
    """Modules that repeat `count` times, or modules of one class that differ in numbers."""

    items: tuple[Content, ...]
    count: int
    varies: bool = False

    @property
    def layout(self) -> Any:
        return self.varies, tuple(item.layout for item in self.items[: 1 if self.varies else None])


def _runs(items: Sequence[Content]) -> list[Run]:
    """Groups repeated modules, with the longest repetition at each place."""
    keys = [(item.layout, item.numbers) for item in items]
    runs: list[Run] = []
    place = 0
    while place < len(items):
        period, count = max(
            ((p, _repeats(keys, place, p)) for p in range(1, _LONGEST_PERIOD + 1)),
            key=lambda found: (found[0] * found[1] if found[1] > 1 else 1, -found[0]),
        )
        period = period if count > 1 else 1
        runs.append(Run(tuple(items[place : place + period]), count))
        place += period * count
    return [run for group in _alike(runs) for run in group]


def _repeats(keys: Sequence[Any], place: int, period: int) -> int:
    """How often the next `period` keys repeat."""
    first, count = keys[place : place + period], 1
    while keys[place + count * period : place + (count + 1) * period] == first:
        count += 1
    return count if len(first) == period else 1


def _alike(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs in groups; many of the same class in a row become one that varies."""
    for is_made, group in groupby(
        runs, key=lambda run: len(run.items) == 1 and isinstance(run.items[0], Made) and run.layout
    ):
        members = list(group)
        if is_made and len(members) > _MOST_RUNS:
            items = tuple(item for run in members for item in run.items * run.count)
            yield [Run(items, 1, varies=True)]
        else:
            yield members


@dataclass(eq=False)
class Draft:
    """The code of one module before its class is known."""

    piece: Piece
    input_names: tuple[str, ...]
    entries: tuple[tuple[str, Content], ...]
    """Statements of the constructor, with braces for their content."""
    body: Code
    """Statements of the forward method; empty if the class inherits it."""
    forward: Forward | None = None
    """Writes `body` again once the numbers are known."""
    number: int = -1
    """Of its class, once it has one."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of the constructor by name, once its class is known."""

    @property
    def numbers(self) -> Any:
        return (*(content.numbers for _, content in self.entries), self.body.numbers)


@dataclass(eq=False)
class Argument:
    """An argument of a class."""

    number: Number
    name: str = ""
    is_stored: bool = False
    """Whether the forward method reads it."""


@dataclass
class ClassCode:
    """A class of the file under construction."""

    name: str
    drafts: list[Draft]
    arguments: list[Argument] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)


def merge(contents: Sequence[Content], classes: Callable[[int], ClassCode]) -> Code:
    """The code at one place of the constructor in all modules of a class."""
    first = contents[0]
    if isinstance(first, Code):
        return first.renumbered(merged_numbers(_of_kind(Code, contents)))
    if isinstance(first, Made):
        rows = [[made.draft] for made in _of_kind(Made, contents)]
        return _instance(rows, classes(first.draft.number))[0]
    return _series(_of_kind(Series, contents), classes)


def merged_numbers(codes: Iterable[Code]) -> list[Number]:
    """The numbers of texts of the same layout, each with its value in every text."""
    columns = zip(*(code.open_numbers for code in codes), strict=True)
    return [
        replace(column[0], values=tuple(value for number in column for value in number.values))
        for column in columns
    ]


T = TypeVar("T")


def _of_kind(kind: type[T], contents: Sequence[Content]) -> list[T]:
    """The contents of modules of a class, which are all of one kind."""
    found: list[T] = [content for content in contents if isinstance(content, kind)]
    assert len(found) == len(contents), contents
    return found


def _instance(rows: Sequence[Sequence[Draft]], class_code: ClassCode) -> tuple[Code, Code]:
    """The call of a class, and what it loops over if the modules in a row differ.

    rows: for each module that is written, those of `class_code` that it makes at a place.
    """
    texts: list[Code] = []
    loops: list[tuple[str, Code]] = []
    for name in (argument.name for argument in class_code.arguments):
        columns = [[draft.arguments[name] for draft in row] for row in rows]
        if all(len(set(column)) == 1 for column in columns):
            text = _number([column[0] for column in columns], name)
        else:
            loops.append((name, _number([*map(tuple, columns)], f"{name}_of_each")))
            text = code(name)
        texts.append(code(f"{name}=", text) if len(class_code.arguments) > 1 else text)
    call = code(f"{class_code.name}(", joined(", ", texts), ")")
    if len(loops) < 2:
        return call, joined("", [code(f"{name} in ", values) for name, values in loops])
    names = ", ".join(name for name, _ in loops)
    lists = joined(", ", [values for _, values in loops])
    return call, code(f"{names} in zip(", lists, ", strict=True)")


def _number(values: Sequence[Any], role: str, is_count: bool = False) -> Code:
    return Code((Number(tuple(values), role, is_count=is_count),))


def _series(contents: Sequence[Series], classes: Callable[[int], ClassCode]) -> Code:
    first = contents[0]
    runs = [_run(runs, classes) for runs in zip(*(c.runs for c in contents), strict=True)]
    if first.as_list and len(runs) == 1 and runs[0].is_generator:
        inside = runs[0].code
    else:
        spread = [code("*(", run.code, ")") if run.is_generator else run.code for run in runs]
        inside = joined(", ", spread)
    return (code("[", inside, "]") if first.as_list else inside).within(first.holder)


@dataclass(frozen=True)
class _RunCode:
    code: Code
    is_generator: bool = False


def _run(runs: Sequence[Run], classes: Callable[[int], ClassCode]) -> _RunCode:
    first = runs[0]
    if first.varies:
        rows = [[made.draft for made in _of_kind(Made, run.items)] for run in runs]
        call, loop = _instance(rows, classes(rows[0][0].number))
        return _RunCode(code(call, " for ", loop), is_generator=True)
    places = range(len(first.items))
    texts = [merge([run.items[place] for run in runs], classes) for place in places]
    inside = joined(", ", texts)
    counts = [run.count for run in runs]
    if set(counts) == {1}:
        return _RunCode(inside)
    times = code("for _ in range(", _number(counts, "count", is_count=True), ")")
    if len(texts) == 1:
        return _RunCode(code(inside, " ", times), is_generator=True)
    return _RunCode(code("block ", times, " for block in (", inside, ")"), is_generator=True)
