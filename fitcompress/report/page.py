"""Renders a document as one HTML page without scripts and external resources."""

from __future__ import annotations

import base64
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fitcompress.environment import package_version
from fitcompress.report.document import Document, Picture
from fitcompress.report.drawing import draw_svg

__all__ = ["render_html"]


def render_html(document: Document) -> str:
    """The document as HTML, with its charts and pictures in the same file."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = resources.files("fitcompress.report").joinpath("page.html.j2")
    page = environment.from_string(template.read_text(encoding="utf-8"))
    charts = [
        [
            (chart, Markup(draw_svg(chart, f"{section.title} {number}")))
            for number, chart in enumerate(section.charts)
        ]
        for section in document.sections
    ]
    text = page.render(
        document=document,
        parts=list(zip(document.sections, charts, strict=True)),
        source_of=_source,
        version=package_version("fitcompress") or "",
    )
    return text.replace(" %", "\N{NO-BREAK SPACE}%")


def _source(picture: Picture) -> str:
    """The picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(picture.path.read_bytes()).decode()}"
