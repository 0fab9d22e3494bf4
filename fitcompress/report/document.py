"""What a report says, as values: sentences and titled parts with tables, charts and pictures. Pure.

Everything is put into words once; the forms (text, Markdown, HTML) only draw. What a form cannot
show it leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcompress.report.charts import Chart

__all__ = ["NONE", "Cell", "Document", "Picture", "Section", "Sentence", "Table", "in_words"]

NONE = "-"
"""What stands where nothing is known."""


@dataclass(frozen=True)
class Sentence:
    """One sentence, and whether it is a warning about all the others."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Cell:
    """What stands in a table: the thing itself, and what is said about it in smaller print."""

    main: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first names the row, the others are numbers if `is_numeric`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_numeric: bool = True


@dataclass(frozen=True)
class Picture:
    """A small PNG file and the lines below it."""

    path: Path
    caption: tuple[Cell, ...]
    """Each a label and, as its detail, what it says."""


@dataclass(frozen=True)
class Section:
    """A titled part: charts, pictures or a table that says the same, lines, text to copy as it is.

    Where pictures can be shown they stand for the table. An appendix, a title and a text, is for
    forms that have the room.
    """

    title: str
    note: str = ""
    table: Table | None = None
    lines: tuple[str, ...] = ()
    code: str = ""
    appendix: tuple[str, str] | None = None
    charts: tuple[Chart, ...] = ()
    pictures: tuple[Picture, ...] = ()

    @property
    def has_words(self) -> bool:
        """Whether there is something to show where nothing can be drawn."""
        return bool(self.lines or self.code or (self.table and self.table.rows))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show at all."""
        return not (self.has_words or self.charts or self.pictures)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    """What kind of report."""
    name: str
    """What it is about: directories as they were named."""
    heading: str
    """The same in short."""
    sentences: tuple[Sentence, ...]
    sections: tuple[Section, ...]


def in_words(value: Any, words: Callable[[Any], str]) -> str:
    """The value as `words` puts it, or the mark for what is not known."""
    return NONE if value is None else words(value)
