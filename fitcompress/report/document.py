"""The content of a report as values: sentences and sections with tables, charts and pictures. Pure.

All text is made once; text, Markdown and HTML only lay it out, and leave out what they cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fitcompress.report.charts import Chart

__all__ = ["NONE", "Cell", "Document", "Picture", "Section", "Sentence", "Table", "text_or_none"]

_T = TypeVar("_T")

NONE = "-"
"""Stands for an unknown value."""


@dataclass(frozen=True)
class Sentence:
    """A sentence; a warning qualifies all the others."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, and a detail in smaller print."""

    main: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows. The first column names the row; the others are right-aligned numbers if
    `is_numeric`.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_numeric: bool = True


@dataclass(frozen=True)
class Picture:
    """A small PNG file and its caption."""

    path: Path
    caption: tuple[Cell, ...]
    """Labels, each with its text as the detail."""


@dataclass(frozen=True)
class Section:
    """A titled part of a report: a note, charts, a table, a list of lines and code to copy.

    Pictures replace the table in forms that can show them. The appendix (a title and a text) is not
    part of the text form.
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
    def has_text(self) -> bool:
        """Whether there is anything to show without charts and pictures."""
        return bool(self.lines or self.code or (self.table and self.table.rows))

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.has_text or self.charts or self.pictures)


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    """The kind of report."""
    name: str
    """The reported directories, as given."""
    heading: str
    """The short form of `name`."""
    sentences: tuple[Sentence, ...]
    sections: tuple[Section, ...]


def text_or_none(value: _T | None, text: Callable[[_T], str]) -> str:
    """The text of a value, or `NONE` if it is None."""
    return NONE if value is None else text(value)
