"""Everything known about a run, finished or not, read from its directory."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar

from fitcompress.errors import RunError
from fitcompress.records.export_record import ExportRecord
from fitcompress.records.json_record import Record
from fitcompress.records.measurements import NetworkCosts
from fitcompress.records.plan_summary import PairSummary, PlanSummary
from fitcompress.records.run_results import EpochRecord, ModelResult, RunResults, StageRecord
from fitcompress.rundir import RunDir

__all__ = ["NETWORKS", "RunFacts", "read_record"]

NETWORKS = ("teacher", "student", "baseline")
"""The networks of a run."""


@dataclass(frozen=True)
class RunFacts:
    """The files of a run and what follows from them."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    plan: PlanSummary | None = None
    results: RunResults = field(default_factory=lambda: RunResults(agreement=None))
    exports: tuple[ExportRecord, ...] = ()
    events: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def load(cls, run: RunDir | Path | str) -> Self:
        """Reads as much of a run as there is.

        Raises:
            RunError: the directory holds no run, or a file in it is damaged.
        """
        run = RunDir.open(run.path if isinstance(run, RunDir) else Path(run))
        recipe, recipe_text = _read_recipe(run)
        plan, results = run.read_json("plan.json"), run.read_json("results.json")
        exports = run.read_json("exports.json") or ()
        return cls(
            path=run.path,
            recipe=recipe,
            recipe_text=recipe_text,
            environment=run.read_json("environment.json") or {},
            plan=read_record(PlanSummary, run, "plan.json", plan) if plan else None,
            results=read_record(RunResults, run, "results.json", results or {}),
            exports=tuple(read_record(ExportRecord, run, "exports.json", each) for each in exports),
            events=tuple(run.read_events()),
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete."""
        return self.results.student is not None

    @property
    def teacher_name(self) -> str:
        """The teacher as in the recipe; the last part of a path."""
        source = str(self.recipe.get("teacher", {}).get("source") or "")
        return source.rstrip("/").rpartition("/")[2] or "the teacher"

    @property
    def pairs(self) -> tuple[PairSummary, ...]:
        """The hint pairs that are used in training."""
        return self.plan.pairs if self.plan and self.plan.learns_hints else ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The parts of a finished run that this run does not have yet."""
        stages = {record.stage for record in self.stages if record.is_finished}
        has_no_stage1 = self.recipe.get("stage1", {}).get("epochs") == 0
        parts = {
            "the plan of the student": self.plan is not None,
            "stage 1 (hint training)": self.is_finished or has_no_stage1 or "stage1" in stages,
            "stage 2 (distillation)": self.is_finished or "stage2" in stages,
            "the measured results": self.is_finished,
        }
        return tuple(part for part, is_present in parts.items() if not is_present)

    @property
    def stages(self) -> tuple[StageRecord, ...]:
        """The cost of each stage, in order: measured if the run is finished, otherwise from its
        events.
        """
        records = _stages_of(self.events)
        for measured in self.results.stages:
            known = records.setdefault(measured.stage, {"stage": measured.stage, "epochs": 0})
            written = measured.to_dict().items()
            known.update({key: value for key, value in written if value is not None})
            known["is_finished"] = True
        return tuple(_stage_record(record) for record in records.values())

    @property
    def curves(self) -> dict[str, list[EpochRecord]]:
        """The epochs of each stage in order; of a repeated epoch, the last run."""
        epochs: dict[str, dict[int, EpochRecord]] = {}
        for event in self.events:
            if event.get("event") == "EpochFinished":
                epoch = replace(EpochRecord.from_dict(event), images_per_s=None)
                epochs.setdefault(event["stage"], {})[epoch.epoch] = epoch
        return {stage: [rows[key] for key in sorted(rows)] for stage, rows in epochs.items()}

    @property
    def notices(self) -> tuple[str, ...]:
        """The messages of all notices, without repetitions."""
        return tuple(self._codes_of_notices)

    @property
    def notice_codes(self) -> tuple[str, ...]:
        """The code of each of `notices`; empty for runs that stored none."""
        return tuple(self._codes_of_notices.values())

    @property
    def _codes_of_notices(self) -> dict[str, str]:
        """By message; those of the plan first."""
        stored = [event for event in self.events if event.get("event") == "Notice"]
        codes = {event["message"]: event.get("code", "") for event in stored}
        planned = self.plan.notices if self.plan else ()
        return {message: codes.get(message, "") for message in (*planned, *codes)}

    def model(self, name: str) -> ModelResult | None:
        """What is known about "teacher", "student" or "baseline"; its size only, before it is
        measured.
        """
        measured, costs = self.results.model(name), self.planned_costs(name)
        if measured:
            agreement = self.results.agreement if name == "student" else None
            return replace(measured, agreement=agreement)
        if costs is None:
            return None
        return ModelResult(**vars(costs), size_bytes=None, accuracy=None, calibration=None)

    def planned_costs(self, name: str) -> NetworkCosts | None:
        """The planned size of "teacher" or "student"."""
        if self.plan is None or name not in ("teacher", "student"):
            return None
        return self.plan.teacher if name == "teacher" else self.plan.student

    @property
    def models(self) -> dict[str, ModelResult]:
        """The known networks by name."""
        models = {name: self.model(name) for name in NETWORKS}
        return {name: model for name, model in models.items() if model}


_R = TypeVar("_R", bound=Record)


def read_record(cls: type[_R], run: RunDir, name: str, value: Mapping[str, Any]) -> _R:
    """The record in the JSON of a run's file `name`, which an error names."""
    try:
        return cls.from_dict(value)
    except RunError as error:
        raise error.reworded(f"in '{run.path / name}': {error.message}") from error


def _read_recipe(run: RunDir) -> tuple[dict[str, Any], str]:
    try:
        text = run.recipe_path.read_text(encoding="utf-8")
        return tomllib.loads(text), text
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunError(
            f"reading '{run.recipe_path}': it is not TOML ({error})",
            code="recipe-not-toml",
            advice="The file was changed or damaged. Start the run again with --force.",
            path=str(run.recipe_path),
        ) from error


def _stages_of(events: tuple[Mapping[str, Any], ...]) -> dict[str, dict[str, Any]]:
    """By stage, the keys of a `StageRecord` that its events tell."""
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


def _stage_record(record: dict[str, Any]) -> StageRecord:
    """The record, with its throughput if it can be computed."""
    seconds, num_images = record.get("seconds"), record.get("num_images")
    rate = num_images / seconds if seconds and num_images else None
    return StageRecord.from_dict({"images_per_s": rate, **record})
