"""Renders a document for the terminal."""

from __future__ import annotations

import io

from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from fitcompress.report.document import Cell, Document, Section, Table

__all__ = ["build_view", "render_text"]

_WIDTH = 100


def build_view(document: Document) -> RenderableType:
    """The document for a rich console."""
    title = Text(f"{document.title}: {document.name}", style="bold")
    parts: list[RenderableType] = [title, Text()]
    for sentence in document.sentences:
        mark, style = ("! ", "yellow") if sentence.is_warning else ("  ", "")
        parts.append(_hanging(mark, sentence.text, style))
    for section in document.sections:
        if section.has_text:
            parts += _section_parts(section)
    return Group(*parts)


def render_text(document: Document) -> str:
    """The document as plain text of 100 columns; only commands are longer."""
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(build_view(document))
    return "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _section_parts(section: Section) -> list[RenderableType]:
    parts: list[RenderableType] = [Text(), Text(section.title, style="bold")]
    if section.note:
        parts.append(Text(section.note, style="dim"))
    if section.table:
        parts.append(_draw_table(section.table))
    parts += [_hanging("  - ", line) for line in section.lines]
    if section.code:
        parts += [Text(f"  $ {line}", overflow="fold") for line in section.code.splitlines()]
    return parts


def _hanging(mark: str, text: str, style: str = "") -> RichTable:
    """A mark, and a text whose lines are aligned below each other."""
    row = RichTable.grid()
    row.add_row(Text(mark, style=style), Text(text, style=style))
    return row


def _draw_table(table: Table) -> RichTable:
    drawn = RichTable(box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(table.columns):
        is_right = table.is_numeric and index > 0
        drawn.add_column(
            column, justify="right" if is_right else "left", overflow="fold", no_wrap=index == 0
        )
    for row in table.rows:
        # The detail of the name stays on its line if no other cell needs a second one.
        is_flat = not any(cell.detail for cell in row[1:])
        drawn.add_row(_draw_cell(row[0], ", " if is_flat else "\n"), *map(_draw_cell, row[1:]))
    return drawn


def _draw_cell(cell: Cell, joint: str = "\n") -> Text:
    text = Text(cell.main)
    return text.append(f"{joint}{cell.detail}", style="dim") if cell.detail else text
