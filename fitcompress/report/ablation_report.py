"""`Ablation`: an ablation as text, JSON, Markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcompress.report.ablation_facts import AblationFacts, summary_of
from fitcompress.report.document import Document
from fitcompress.report.forms import render
from fitcompress.report.text import build_view
from fitcompress.report.verdicts import build_ablation_document, verdict

__all__ = ["Ablation"]


@dataclass(frozen=True)
class Ablation(AblationFacts):
    """The same student trained in several ways (arms) over several seeds. Made by `load`."""

    @property
    def verdicts(self) -> list[str]:
        """The answers in words."""
        return [verdict(test) for test in self.answers]

    @property
    def html_path(self) -> Path:
        """Default path of the HTML page."""
        return self.path / "ablation.html"

    def to_dict(self) -> dict[str, Any]:
        """The ablation for scripts, ready for JSON."""
        arms = []
        for arm in self.record.arms:
            accuracies, cost = self.accuracies(arm.name), self.cost(arm.name)
            summary = summary_of(accuracies)
            arms.append(
                {
                    **arm.to_dict(),
                    "accuracies": accuracies,
                    "accuracy": summary.to_dict() if summary else None,
                    "cost": cost.to_dict() if cost else None,
                }
            )
        return {
            "ablation": str(self.path),
            "teacher": self.record.teacher,
            "teacher_accuracy": self.teacher_accuracy,
            "seeds": list(self.seeds),
            "missing": [list(cell) for cell in self.missing],
            "failed": [[*cell, why] for cell, why in self.failed.items()],
            "is_extended": self.record.is_extended,
            "arms": arms,
            "answers": [test.to_dict() for test in self.answers],
            "comparisons": [test.to_dict() for test in self.comparisons],
            "verdicts": self.verdicts,
        }

    def document(self) -> Document:
        """The ablation as sentences, tables and charts."""
        return build_ablation_document(self)

    def render(self, form: str = "text") -> str:
        """The ablation as "text" (100 columns), "json", "md" or "html" (one file).

        Raises:
            RunError: `form` is none of these.
        """
        return render(self, form)

    def __rich__(self) -> Any:
        return build_view(self.document())
