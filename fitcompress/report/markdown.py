"""Renders a document as GitHub-flavored Markdown."""

from __future__ import annotations

from typing import Any

from fitcompress.report.document import Cell, Document, Section, Table

__all__ = ["render_markdown"]


def render_markdown(document: Document) -> str:
    """The document as Markdown, without charts and pictures."""
    lines = [f"# {document.title}: {_escaped(document.name)}", ""]
    for sentence in document.sentences:
        mark = "**Note:** " if sentence.is_warning else ""
        lines.append(f"- {mark}{_escaped(sentence.text)}")
    for section in document.sections:
        if section.has_text:
            lines += ["", f"## {_escaped(section.title)}", "", *_body(section)]
    return "\n".join(lines) + "\n"


def _body(section: Section) -> list[str]:
    body = [_escaped(section.note), ""] if section.note else []
    if section.table:
        body += _table(section.table)
    if section.table and section.lines:
        body.append("")
    body += [f"- {_escaped(line)}" for line in section.lines]
    if section.code:
        body += ["```sh", section.code, "```"]
    if section.appendix:
        title, text = section.appendix
        body += ["", f"<details><summary>{title}</summary>", "", "```toml", text, "```"]
        body += ["", "</details>"]
    return body


def _table(table: Table) -> list[str]:
    marks = [
        "---" if index == 0 or not table.is_numeric else "---:"
        for index in range(len(table.columns))
    ]
    rows: list[list[Any]] = [list(map(_escaped, table.columns)), marks]
    rows += [[_cell(cell) for cell in row] for row in table.rows]
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(cell: Cell) -> str:
    main, detail = _escaped(cell.main), _escaped(cell.detail)
    return f"{main} ({detail})" if main and detail else main or detail


def _escaped(text: str) -> str:
    """Escapes Markdown markup; layer names are full of underscores."""
    for character in ("\\", "|", "_", "*", "<", "`"):
        text = text.replace(character, f"\\{character}")
    return text
