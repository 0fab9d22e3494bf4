"""The report of a run as a document. Pure; what was found in the answers is in `findings`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from fitcompress.formatting import (
    bytes_text,
    count_text,
    duration_text,
    integer_text,
    percent_text,
    rate_text,
    shape_text,
    speeds_text,
    stage_title,
    threads_text,
)
from fitcompress.report.document import NONE, Cell, Document, Section, Table, in_words
from fitcompress.report.findings import (
    calibration,
    classes,
    curves,
    disagreements,
    doubts,
    latencies,
)
from fitcompress.report.headline import evaluation_split, headline
from fitcompress.report.rows import list_measures, share_cell
from fitcompress.report.run_report import Report

__all__ = ["build_document"]

_SHOWN_NAMES = 3
_MODEL_NAMES = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline"}


def build_document(report: Report) -> Document:
    """Every part of the report that has something to show, in order."""
    makers: tuple[Callable[[Report], Section], ...] = (
        _comparison,
        curves,
        disagreements,
        doubts,
        classes,
        calibration,
        latencies,
        _costs,
        _architecture,
        _pairs,
        _exports,
        _frozen,
        _notices,
        _reproduction,
        _environment,
    )
    sections = (make(report) for make in makers)
    return Document(
        title="fitcompress report",
        name=str(report.path),
        heading=report.path.resolve().name,
        sentences=headline(report),
        sections=tuple(section for section in sections if not section.is_empty),
    )


def _comparison(report: Report) -> Section:
    known = report.models
    teacher, student = known.get("teacher", {}), known.get("student", {})
    rows = tuple(
        (
            measure.label,
            *(measure.value(model) for model in known.values()),
            Cell(measure.compare(teacher, student)),
        )
        for measure in list_measures(tuple(known.values()))
    )
    columns = ("", *(_MODEL_NAMES[name] for name in known), "Student vs teacher")
    data = report.results.get("data") or {}
    notes = [f"Measured on {evaluation_split(report)}."] if report.is_finished else []
    notes += [data["description"]] if data.get("description") else []
    if "baseline" in known:
        notes.append("Baseline: the same student, trained without a teacher.")
    return Section("Comparison", _as_sentences(notes), Table(columns, rows))


def _as_sentences(notes: list[str]) -> str:
    return " ".join(note if note.endswith(".") else f"{note}." for note in notes)


def _costs(report: Report) -> Section:
    rows = tuple(
        _cost_row(record, report.curves.get(record["stage"], [])) for record in report.stages
    )
    columns = ("Stage", "Time", "Images", "FLOPs", "Images/s", "Loss", "Top-1")
    note = (
        "FLOPs: of all its training steps, the teacher's part once, the student's three times, and"
        " those of one image. Loss and top-1 (on the tenth of the training images that is held"
        " out): of the last epoch, and of the first."
    )
    return Section("What each stage cost", note if report.curves else "", Table(columns, rows))


def _cost_row(record: Mapping[str, Any], epochs: list[dict[str, Any]]) -> tuple[Cell, ...]:
    title = stage_title(record["stage"])
    state = "" if record.get("is_finished") else "unfinished"
    losses = [epoch["losses"]["loss"] for epoch in epochs if "loss" in epoch["losses"]]
    top1 = [epoch["held_out"]["top1"] for epoch in epochs if "top1" in epoch["held_out"]]
    num_epochs, waiting = record.get("epochs"), record.get("waiting_share")
    return (
        Cell(title, state),
        Cell(in_words(record.get("seconds"), duration_text)),
        Cell(
            in_words(record.get("num_images"), integer_text),
            f"{num_epochs} epoch{'s' if num_epochs != 1 else ''}" if num_epochs else "",
        ),
        _flops_cell(record.get("flops_per_image"), record.get("num_images")),
        Cell(
            in_words(record.get("images_per_s"), rate_text),
            f"{waiting:.0%} wait" if waiting is not None else "",
        ),
        _last_of(losses, lambda loss: f"{loss:.3g}"),
        _last_of(top1, percent_text),
    )


def _flops_cell(per_image: float | None, num_images: int | None) -> Cell:
    if not per_image or num_images is None:
        return Cell(NONE)
    return Cell(count_text(per_image * num_images), f"{count_text(per_image)} each")


def _architecture(report: Report) -> Section:
    rows = tuple(
        (
            Cell(str(stage.get("name", ""))),
            _stage_cell(stage, "teacher"),
            _stage_cell(stage, "student"),
        )
        for stage in report.plan.get("stages", ())
    )
    note = "Blocks x width in each stage, with its parameters."
    return Section("Architecture", note, Table(("Stage", "Teacher", "Student"), rows))


def _stage_cell(stage: Mapping[str, Any], name: str) -> Cell:
    side = stage.get(name) or {}
    if not side:
        return Cell(NONE)
    params = side.get("params")
    width = shape_text(side.get("width", "?"))
    return Cell(
        f"{side.get('blocks', '?')} x {width}", count_text(params) if params is not None else ""
    )


def _pairs(report: Report) -> Section:
    rows = tuple(
        (
            Cell(str(pair["hint"]), shape_text(pair.get("hint_shape", ""))),
            Cell(str(pair["guided"]), shape_text(pair.get("guided_shape", ""))),
            Cell(_regressor_text(pair.get("regressor"))),
        )
        for pair in report.pairs
    )
    columns = ("Hint (teacher)", "Guided (student)", "Regressor")
    return Section("Hints", table=Table(columns, rows, is_numeric=False))


def _regressor_text(regressor: object) -> str:
    if isinstance(regressor, Mapping):
        return ", ".join(f"{key} {shape_text(value)}" for key, value in regressor.items())
    return str(regressor or NONE)


def _exports(report: Report) -> Section:
    rows = tuple(_export_row(record) for record in report.exports)
    sizes = dict.fromkeys(size for one in report.exports for size in one["checked_batches"])
    batches = " and ".join(map(str, sizes))
    columns = ("File", "Size", "Largest difference", "Same top-1", "Top-1", "Speed")
    note = (
        f"Each file was run on real images, at batch {batches}, and compared with the student in"
        " PyTorch; its own top-1 is that on the evaluation images, run by what the format is for."
        " Its speed is that in onnxruntime beside the student in float32, which took turns with it."
    )
    return Section("Exports", note, Table(columns, rows))


def _export_row(record: Mapping[str, Any]) -> tuple[Cell, ...]:
    relative = record.get("max_rel_diff")
    speed, _, others = in_words(record.get("latency"), speeds_text).partition(", ")
    return (
        Cell(
            str(record.get("path", NONE)).replace("\\", "/").rsplit("/", 1)[-1],
            ", ".join(str(record[key]) for key in ("format", "remark") if record.get(key)),
        ),
        Cell(in_words(record.get("size_bytes"), bytes_text)),
        Cell(
            in_words(record.get("max_abs_diff"), lambda value: f"{value:.1e}"),
            f"{relative:.1e} of the largest output" if relative is not None else "",
        ),
        Cell(in_words(record.get("top1_agreement"), percent_text)),
        share_cell(record.get("accuracy")),
        Cell(speed, others),
    )


def _frozen(report: Report) -> Section:
    lines = tuple(_place_text(place) for place in report.plan.get("frozen", ()))
    note = "Sizes that had to stay as they are in the teacher; the student is less thin there."
    return Section("Frozen places", note, lines=lines)


def _place_text(place: object) -> str:
    """One frozen place: `tensors` (or `place`) that keep `sizes` for a `reason`."""
    if not isinstance(place, Mapping):
        return str(place)
    names = [str(name) for name in place.get("tensors") or [place.get("place", "")]]
    shown = ", ".join(names[:_SHOWN_NAMES])
    if len(names) > _SHOWN_NAMES:
        shown += f" and {len(names) - _SHOWN_NAMES} more"
    sizes = ", ".join(str(size) for size in place.get("sizes", ()))
    head = f"{shown} (size {sizes})" if sizes else shown
    return ": ".join(part for part in (head, str(place.get("reason", ""))) if part)


def _notices(report: Report) -> Section:
    return Section("Notices", lines=report.notices)


def _reproduction(report: Report) -> Section:
    again = [
        "fitcompress",
        "distill",
        "--config",
        str(report.path / "recipe.toml"),
        "--out",
        "NEW_RUN",
    ]
    first = report.environment.get("command")
    code = f"{first}\n" if first else ""
    note = "Run as first given, and from the stored recipe." if first else "From the stored recipe."
    recipe = ("The recipe", report.recipe_text.strip())
    return Section(
        "Reproduce",
        note,
        code=code + shlex.join(again),
        appendix=recipe if recipe[1] else None,
    )


def _environment(report: Report) -> Section:
    known = report.environment
    versions = {k: v for k, v in (known.get("versions") or {}).items() if v}
    hardware = [known.get(key) for key in ("device", "gpu", "cpu", "platform")]
    threads = threads_text({"threads": known["threads"]}) if known.get("threads") else ""
    lines = (
        ", ".join(str(part) for part in (*hardware, threads) if part),
        ", ".join(f"{k} {v}" for k, v in {"python": known.get("python"), **versions}.items() if v),
    )
    return Section("Made with", lines=tuple(line for line in lines if line))


def _last_of(values: list[Any], words: Callable[[Any], str]) -> Cell:
    """The last value, and the first in small print."""
    known = [words(value) for value in values if value is not None]
    return Cell(known[-1], f"from {known[0]}" if len(known) > 1 else "") if known else Cell(NONE)
