"""What every report can do once it is a document. Knows no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from fitcompress.report.document import Document

__all__ = ["Rendered"]


class Rendered(ABC):
    """A report that can be shown and written in every form."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The report for scripts, ready for JSON."""

    @abstractmethod
    def document(self) -> Document:
        """The report in words, tables and charts."""

    def render(self, form: str = "text") -> str:
        """The report as "text" (100 columns), "json", "md" or "html" (one file).

        Raises:
            RunError: `form` is none of these.
        """
        from fitcompress.report.forms import render

        return render(form, self.document(), self.to_dict())

    def __rich__(self) -> Any:
        """What `rich.print(report)` shows."""
        from fitcompress.report.text import build_view

        return build_view(self.document())
