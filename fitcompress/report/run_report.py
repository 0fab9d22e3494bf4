"""`Report`: everything known about a run, finished or not, merged from its directory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitcompress.errors import RunError
from fitcompress.report.document import Document
from fitcompress.report.rendered import Rendered
from fitcompress.rundir import RunDir

__all__ = ["Report"]

_MODEL_FIELDS = ("params", "macs", "flops", "depth", "size_bytes", "accuracy")
_BATCH_OF_LATENCY_MS = "1"


@dataclass(frozen=True)
class Report(Rendered):
    """What a run was, what came out and what it cost. `load` makes one."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    exports: tuple[Mapping[str, Any], ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def load(cls, run: RunDir | Path | str) -> Report:
        """The report of a run, of as much as there is.

        Raises:
            RunError: there is no run, or a file in it is damaged.
        """
        run = RunDir.open(run.path if isinstance(run, RunDir) else Path(run))
        recipe, recipe_text = _read_recipe(run)
        return cls(
            path=run.path,
            recipe=recipe,
            recipe_text=recipe_text,
            environment=run.read_json("environment.json") or {},
            plan=run.read_json("plan.json") or {},
            results=run.read_json("results.json") or {},
            exports=tuple(run.read_json("exports.json") or ()),
            events=tuple(run.read_events()),
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.results)

    @property
    def teacher_name(self) -> str:
        """The teacher as the user named it, a path by its last part."""
        source = str(self.recipe.get("teacher", {}).get("source") or "")
        return source.rstrip("/").rpartition("/")[2] or "the teacher"

    @property
    def pairs(self) -> tuple[dict[str, Any], ...]:
        """The hint pairs that the student learns from, of those of the plan."""
        return tuple(self.plan.get("pairs", ())) if self.plan.get("learns_hints", True) else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """What a finished run would have and this one has not, in words."""
        stages = {record["stage"] for record in self.stages if record["is_finished"]}
        has_no_stage1 = self.recipe.get("stage1", {}).get("epochs") == 0
        parts = (
            ("the plan of the student", bool(self.plan)),
            ("stage 1 (hint training)", self.is_finished or has_no_stage1 or "stage1" in stages),
            ("stage 2 (distillation)", self.is_finished or "stage2" in stages),
            ("the measured results", self.is_finished),
        )
        return tuple(words for words, is_there in parts if not is_there)

    @property
    def stages(self) -> tuple[dict[str, Any], ...]:
        """What each stage cost, in order.

        `stage`, `seconds`, `num_images`, `epochs`, `images_per_s`, `is_finished`.
        """
        records = _stages_of(self.events)
        for measured in self.results.get("stages", ()):
            known = records.setdefault(measured["stage"], {"stage": measured["stage"], "epochs": 0})
            known.update(measured, is_finished=True)
        return tuple(_with_rate(record) for record in records.values())

    @property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """For each stage its epochs in order; an epoch that was run again counts once.

        `epoch`, `losses`, `held_out`, `seconds`.
        """
        epochs: dict[str, dict[int, dict[str, Any]]] = {}
        for event in self.events:
            if event.get("event") == "EpochFinished":
                kept = {key: event[key] for key in ("epoch", "losses", "held_out", "seconds")}
                epochs.setdefault(event["stage"], {})[event["epoch"]] = kept
        return {stage: [rows[key] for key in sorted(rows)] for stage, rows in epochs.items()}

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, each once."""
        said = (event["message"] for event in self.events if event.get("event") == "Notice")
        planned = (_notice_text(notice) for notice in self.plan.get("notices", ()))
        return tuple(dict.fromkeys((*planned, *said)))

    def model(self, name: str) -> dict[str, Any] | None:
        """What is known about "teacher", "student" or "baseline"; None when nothing is."""
        planned, measured = self.plan.get(name), self.results.get(name)
        if not planned and not measured:
            return None
        merged = {**dict.fromkeys(_MODEL_FIELDS), **(planned or {}), **(measured or {})}
        by_runtime = merged.pop("latency_ms", None) or {}
        first: Mapping[str, Any] = next(iter(by_runtime.values()), {})
        merged["latency_ms"] = first.get(_BATCH_OF_LATENCY_MS, {}).get("median_ms")
        merged["latency"] = by_runtime
        if name == "student":
            merged["agreement"] = self.results.get("agreement")
        return merged

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """Those of teacher, student and baseline about which something is known."""
        models = {name: self.model(name) for name in ("teacher", "student", "baseline")}
        return {name: model for name, model in models.items() if model}

    @property
    def html_path(self) -> Path:
        """Where its page lies when nobody says where."""
        return RunDir(self.path).report_path("html")

    def to_dict(self) -> dict[str, Any]:
        """The report for scripts, ready for JSON.

        Of each model `latency_ms` is the median of one image in the first runtime measured
        (PyTorch); `latency` holds all, by runtime and batch size.
        """
        from fitcompress.report.headline import headline

        models = {name: self.model(name) for name in ("teacher", "student", "baseline")}
        if models["baseline"] is None:
            del models["baseline"]
        return {
            "run": str(self.path),
            "is_finished": self.is_finished,
            "missing": list(self.missing),
            "headline": [sentence.text for sentence in headline(self)],
            **models,
            "agreement": self.results.get("agreement"),
            "tests": self.results.get("tests", {}),
            **{key: self.results.get(key, []) for key in ("classes", "disagreements", "doubts")},
            "stages": list(self.stages),
            "exports": [dict(record) for record in self.exports],
            "pairs": list(self.pairs),
            "frozen": self.plan.get("frozen", []),
            "notices": list(self.notices),
            "data": self.results.get("data"),
            "headline_facts": self.results.get("headline_facts", {}),
            "curves": self.curves,
            "recipe": dict(self.recipe),
            "environment": dict(self.environment),
        }

    def document(self) -> Document:
        """The report in words, tables and charts."""
        from fitcompress.report.run_document import build_document

        return build_document(self)


def _read_recipe(run: RunDir) -> tuple[dict[str, Any], str]:
    try:
        text = run.recipe_path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"reading {str(run.recipe_path)!r}: it is not TOML ({error})") from error


def _stages_of(events: tuple[Mapping[str, Any], ...]) -> dict[str, dict[str, Any]]:
    """Per stage what its events tell: that it began, each epoch, that it ended."""
    records: dict[str, dict[str, Any]] = {}
    seconds: dict[str, dict[int, float]] = {}
    for event in events:
        stage = event.get("stage")
        if stage is None:
            continue
        record = records.setdefault(stage, {"stage": stage, "epochs": 0, "is_finished": False})
        if event["event"] == "EpochFinished":
            seconds.setdefault(stage, {})[event["epoch"]] = event["seconds"]
            record["epochs"] = len(seconds[stage])
            record["seconds"] = sum(seconds[stage].values())
        elif event["event"] == "StageFinished":
            ended = {key: event[key] for key in ("seconds", "num_images")}
            record.update(ended, is_finished=True, **event.get("detail", {}))
    return records


def _with_rate(record: dict[str, Any]) -> dict[str, Any]:
    """The record with `images_per_s`, where it can be known."""
    seconds, num_images = record.get("seconds"), record.get("num_images")
    rate = num_images / seconds if seconds and num_images else None
    return {"seconds": None, "num_images": None, "images_per_s": rate, **record}


def _notice_text(notice: object) -> str:
    return str(notice.get("message", notice)) if isinstance(notice, Mapping) else str(notice)
