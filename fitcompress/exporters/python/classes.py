"""Finds which modules are of one class, and what its arguments are. Layer: graph.

Modules whose code differs in numbers alone are one class. Numbers that are the same in all of them
stay in the code; those that differ become arguments, one for all that are always equal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from fitcompress.exporters.python.forward import Hole
from fitcompress.exporters.python.modules import Piece

__all__ = ["Argument", "ClassCode", "Content", "Draft", "Made", "Series", "Text", "Vector", "merge"]

_LONGEST_PERIOD = 4
_MOST_RUNS = 3
"""A list of more runs of equal modules is written as one loop over their arguments."""


@dataclass(frozen=True)
class Text:
    """Python with marked numbers."""

    text: str
    holes: tuple[Hole, ...] = ()

    @property
    def layout(self) -> Any:
        return self.text, tuple(hole.layout for hole in self.holes)

    @property
    def numbers(self) -> Any:
        return tuple(repr(hole.value) for hole in self.holes)


@dataclass(frozen=True)
class Made:
    """An instance of a class of the file."""

    draft: Draft

    @property
    def layout(self) -> Any:
        return ("made", self.draft.number)

    @property
    def numbers(self) -> Any:
        return self.draft.numbers


@dataclass(frozen=True)
class Series:
    """Modules one after the other."""

    holder: str
    """What they are given to, with braces for them; a plain call takes them one by one."""
    items: tuple[Content, ...]
    as_list: bool = False
    """Whether the holder takes them as one list."""

    @property
    def runs(self) -> list[Run]:
        return _runs(self.items)

    @property
    def layout(self) -> Any:
        return (self.holder, tuple(run.layout for run in self.runs))

    @property
    def numbers(self) -> Any:
        return tuple(item.numbers for item in self.items)


Content = Text | Made | Series


@dataclass(frozen=True)
class Run:
    """Modules that repeat: a few of them so many times, or many that differ in numbers."""

    items: tuple[Content, ...]
    count: int
    varies: bool = False

    @property
    def layout(self) -> Any:
        return self.varies, tuple(item.layout for item in self.items[: 1 if self.varies else None])


def _runs(items: Sequence[Content]) -> list[Run]:
    """What repeats taken together, the longest repetition first at each place."""
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
    """How often the next `period` keys follow one another."""
    first, count = keys[place : place + period], 1
    while keys[place + count * period : place + (count + 1) * period] == first:
        count += 1
    return count if len(first) == period else 1


def _alike(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs; many of the same class in a row as one that varies."""
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
    """One module on the way to its class."""

    piece: Piece
    number: int
    """That of its class."""
    input_names: tuple[str, ...]
    entries: tuple[tuple[str, Content], ...]
    """What the constructor sets: a statement with braces, and what comes there."""
    body: Text
    values: dict[str, Any] = field(default_factory=dict)
    """The arguments that it is made with, once its class is known."""

    @property
    def numbers(self) -> Any:
        return (*(content.numbers for _, content in self.entries), self.body.numbers)


@dataclass(frozen=True)
class Vector:
    """A number in the code of a class, with its value in each module of the class."""

    values: tuple[Any, ...]
    role: str
    keyword: str = ""
    default: Any = None
    in_body: bool = False
    is_count: bool = False

    @property
    def is_constant(self) -> bool:
        return len(set(map(repr, self.values))) == 1


@dataclass(eq=False)
class Argument:
    """An argument of a class."""

    vector: Vector
    name: str = ""
    is_stored: bool = False
    """Whether the forward method reads it."""


@dataclass
class ClassCode:
    """A class of the file, while it is written."""

    name: str
    drafts: list[Draft]
    arguments: list[Argument] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)
    body: str = ""


def merge(
    contents: Sequence[Content], classes: Callable[[int], ClassCode], vectors: list[Vector]
) -> str:
    """The text of what a place holds in every module of a class; its numbers join `vectors`, and
    are marked by their place there."""
    first = contents[0]
    if isinstance(first, Text):
        marks = [
            _mark(
                vectors,
                [content.holes[index].value for content in contents],  # type: ignore[union-attr]
                hole.role,
                hole.keyword,
                hole.default,
            )
            for index, hole in enumerate(first.holes)
        ]
        return re.sub("\0(\\d+)\1", lambda found: marks[int(found[1])], first.text)
    if isinstance(first, Made):
        drafts = [content.draft for content in contents]  # type: ignore[union-attr]
        return _instance([[draft] for draft in drafts], classes(first.draft.number), vectors)[0]
    return _series(contents, classes, vectors)  # type: ignore[arg-type]


def _mark(
    vectors: list[Vector],
    values: Sequence[Any],
    role: str,
    keyword: str = "",
    default: Any = None,
    is_count: bool = False,
) -> str:
    vectors.append(Vector(tuple(values), role, keyword, default, is_count=is_count))
    return f"\0{len(vectors) - 1}\1"


def _instance(
    rows: Sequence[Sequence[Draft]], code: ClassCode, vectors: list[Vector]
) -> tuple[str, str]:
    """The call of a class, and what it loops over where the modules in a row differ.

    rows: for each module of the class that is written, those of `code` that it makes at a place.
    """
    texts: list[str] = []
    loops: list[tuple[str, str]] = []
    for argument in code.arguments:
        name = argument.name
        columns = [[draft.values[name] for draft in row] for row in rows]
        if all(len(set(column)) == 1 for column in columns):
            texts.append(_mark(vectors, [column[0] for column in columns], name))
        else:
            each = _mark(vectors, list(map(tuple, columns)), f"{name}_of_each")
            loops.append((name, each))
            texts.append(name)
        if len(code.arguments) > 1:
            texts[-1] = f"{name}={texts[-1]}"
    call = f"{code.name}({', '.join(texts)})"
    if len(loops) < 2:
        return call, "".join(f"{name} in {each}" for name, each in loops)
    names, lists = (", ".join(side) for side in zip(*loops, strict=True))
    return call, f"{names} in zip({lists}, strict=True)"


def _series(
    contents: Sequence[Series], classes: Callable[[int], ClassCode], vectors: list[Vector]
) -> str:
    first = contents[0]
    parts = [_run(runs, classes, vectors) for runs in zip(*(c.runs for c in contents), strict=True)]
    if first.as_list and len(parts) == 1 and parts[0].startswith("*("):
        return first.holder.format(f"[{parts[0].removeprefix('*(').removesuffix(')')}]")
    inside = ", ".join(parts)
    return first.holder.format(f"[{inside}]" if first.as_list else inside)


def _run(runs: Sequence[Run], classes: Callable[[int], ClassCode], vectors: list[Vector]) -> str:
    first = runs[0]
    if first.varies:
        rows = [[item.draft for item in run.items] for run in runs]  # type: ignore[union-attr]
        call, loop = _instance(rows, classes(rows[0][0].number), vectors)
        return f"*({call} for {loop})"
    texts = [
        merge([run.items[place] for run in runs], classes, vectors)
        for place in range(len(first.items))
    ]
    counts = [run.count for run in runs]
    if set(counts) == {1}:
        return ", ".join(texts)
    times = f"for _ in range({_mark(vectors, counts, 'count', is_count=True)})"
    if len(texts) == 1:
        return f"*({texts[0]} {times})"
    return f"*(block {times} for block in ({', '.join(texts)}))"
