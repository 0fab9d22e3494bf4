"""The report as JSON, Markdown and one self-contained HTML page."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fitcompress.environment import package_version
from fitcompress.report.curves import build_charts, draw_svg
from fitcompress.report.headline import headline
from fitcompress.report.report import Report
from fitcompress.report.sections import Cell, Section, Table, build_sections

__all__ = ["render_html", "render_json", "render_markdown"]


def render_json(report: Report) -> str:
    """`Report.to_dict` as text."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n"


def render_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [f"# fitcompress report: {_escaped(str(report.path))}", ""]
    for sentence in headline(report):
        mark = "**Note:** " if sentence.is_warning else ""
        lines.append(f"- {mark}{_escaped(sentence.text)}")
    for section in build_sections(report):
        lines += ["", f"## {section.title}", "", *_markdown_body(section)]
    return "\n".join(lines) + "\n"


def render_html(report: Report) -> str:
    """One HTML page that asks nothing from anywhere and runs no script."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("fitcompress.report").joinpath("page.html.j2")
    page = environment.from_string(template.read_text(encoding="utf-8"))
    return page.render(
        title=f"fitcompress: {report.path.resolve().name}",
        teacher=report.teacher_name,
        sentences=headline(report),
        sections=build_sections(report),
        charts=[{"chart": chart, "svg": Markup(draw_svg(chart))} for chart in build_charts(report)],
        version=package_version("fitcompress") or "",
    )


def _markdown_body(section: Section) -> list[str]:
    body = [section.note, ""] if section.note else []
    if section.table:
        body += _markdown_table(section.table)
    body += [f"- {_escaped(line)}" for line in section.lines]
    if section.code:
        body += ["```sh", section.code, "```"]
    return body


def _markdown_table(table: Table) -> list[str]:
    marks = [
        "---" if index == 0 or not table.is_numeric else "---:"
        for index in range(len(table.columns))
    ]
    rows: list[list[Any]] = [list(table.columns), marks]
    rows += [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return [f"| {' | '.join(row)} |" for row in rows]


def _markdown_cell(cell: Cell) -> str:
    main, detail = _escaped(cell.main), _escaped(cell.detail)
    return f"{main} ({detail})" if main and detail else main or detail


def _escaped(text: str) -> str:
    """The text without what Markdown would take for markup; layer names are full of underscores."""
    for character in ("\\", "|", "_", "*", "<", "`"):
        text = text.replace(character, f"\\{character}")
    return text
