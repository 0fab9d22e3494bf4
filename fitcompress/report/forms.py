"""A document in the form that is asked for. Each form has its own imports: JSON needs no
templates, and only the page needs matplotlib."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fitcompress.errors import RunError, near_misses
from fitcompress.report.document import Document

__all__ = ["FORMS", "render"]

FORMS = ("text", "json", "md", "html")
"""What a report can be rendered as."""


def render(form: str, document: Document, value: Mapping[str, Any]) -> str:
    """The document as "text" (100 columns), "md" or "html" (one file), or its `value` as "json".

    Raises:
        RunError: `form` is none of these.
    """
    if form == "json":
        return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    if form == "text":
        from fitcompress.report.text import render_text

        return render_text(document)
    if form == "md":
        from fitcompress.report.markdown import render_markdown

        return render_markdown(document)
    if form == "html":
        from fitcompress.report.page import render_html

        return render_html(document)
    advice = near_misses(form, FORMS)
    raise RunError(f"rendering the report: there is no form {form!r}", advice=advice)
