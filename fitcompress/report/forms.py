"""Renders a report as text, JSON, Markdown or HTML."""

from __future__ import annotations

import json
from typing import Any, Protocol

from fitcompress.errors import RunError, near_misses
from fitcompress.report.document import Document
from fitcompress.report.markdown import render_markdown
from fitcompress.report.text import render_text

__all__ = ["FORMS", "Renderable", "render"]

FORMS = ("text", "json", "md", "html")


class Renderable(Protocol):
    """A report."""

    def to_dict(self) -> dict[str, Any]: ...
    def document(self) -> Document: ...


def render(report: Renderable, form: str) -> str:
    """The report as "text" (100 columns), "json", "md" or "html" (one file).

    Raises:
        RunError: `form` is none of these.
    """
    if form == "json":
        return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, default=str) + "\n"
    if form == "text":
        return render_text(report.document())
    if form == "md":
        return render_markdown(report.document())
    if form == "html":
        # imports jinja2 and matplotlib, which the other forms should not wait for
        from fitcompress.report.page import render_html

        return render_html(report.document())
    raise RunError(
        f"rendering a report: there is no format {form!r}",
        code="report-form-unknown",
        advice=near_misses(form, FORMS) or f"Choose one of {', '.join(FORMS)}.",
        form=form,
        known=list(FORMS),
    )
