"""`Report`: a run as text, JSON, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcompress.records.json_record import Record
from fitcompress.report.document import Document
from fitcompress.report.forms import render
from fitcompress.report.headline import headline
from fitcompress.report.run_document import build_run_document
from fitcompress.report.run_facts import NETWORKS, RunFacts
from fitcompress.report.text import build_view
from fitcompress.rundir import RunDir

__all__ = ["Report"]

_MODEL_FIELDS = ("params", "macs", "flops", "depth", "size_bytes", "accuracy")
_BATCH_OF_LATENCY_MS = "1"


@dataclass(frozen=True)
class Report(RunFacts):
    """A run, finished or not: its results and costs. Made by `load`."""

    @property
    def html_path(self) -> Path:
        """Default path of the HTML page."""
        return RunDir(self.path).report_path("html")

    def to_dict(self) -> dict[str, Any]:
        """The report for scripts, ready for JSON.

        A model's `latency_ms` is the median for one image in the first measured runtime (PyTorch);
        `latency` holds all latencies by runtime and batch size.
        """
        models = {name: self._model_dict(name) for name in NETWORKS}
        if models["baseline"] is None:
            del models["baseline"]
        results = self.results
        return {
            "run": str(self.path),
            "is_finished": self.is_finished,
            "missing": list(self.missing),
            "headline": [sentence.text for sentence in headline(self)],
            **models,
            "agreement": results.agreement.to_dict() if results.agreement else None,
            "tests": {name: test and test.to_dict() for name, test in results.tests.items()},
            "classes": _dicts(results.classes or ()),
            "disagreements": _dicts(results.disagreements or ()),
            "doubts": _dicts(results.doubts or ()),
            "stages": _dicts(self.stages),
            "exports": _dicts(self.exports),
            "pairs": _dicts(self.pairs),
            "frozen": _dicts(self.plan.frozen) if self.plan else [],
            "notices": list(self.notices),
            "notice_codes": list(self.notice_codes),
            "data": results.data.to_dict() if results.data else None,
            "headline_facts": results.headline_facts.to_dict(),
            "curves": {stage: _dicts(epochs) for stage, epochs in self.curves.items()},
            "recipe": dict(self.recipe),
            "environment": dict(self.environment),
        }

    def _model_dict(self, name: str) -> dict[str, Any] | None:
        planned, measured = self.planned_costs(name), self.results.model(name)
        known = [record.to_dict() for record in (planned, measured) if record]
        if not known:
            return None
        merged = dict.fromkeys(_MODEL_FIELDS) | known[0] | known[-1]
        by_runtime = merged.pop("latency_ms", None) or {}
        first: dict[str, Any] = next(iter(by_runtime.values()), {})
        merged["latency_ms"] = first.get(_BATCH_OF_LATENCY_MS, {}).get("median_ms")
        merged["latency"] = by_runtime
        if name == "student":
            agreement = self.results.agreement
            merged["agreement"] = agreement.to_dict() if agreement else None
        return merged

    def document(self) -> Document:
        """The report as sentences, tables and charts."""
        return build_run_document(self)

    def render(self, form: str = "text") -> str:
        """The report as "text" (100 columns), "json", "md" or "html" (one file).

        Raises:
            RunError: `form` is none of these.
        """
        return render(self, form)

    def __rich__(self) -> Any:
        return build_view(self.document())


def _dicts(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [record.to_dict() for record in records]
