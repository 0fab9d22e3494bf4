"""The report of a run as a document. Pure; its sections with charts are in `findings`."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence

from fitcompress.formatting import (
    bytes_text,
    count_text,
    duration_text,
    integer_text,
    percent_text,
    rate_text,
    shape_text,
    stage_title,
    threads_text,
)
from fitcompress.records.export_record import ExportRecord
from fitcompress.records.plan_summary import FrozenSizes, StageSide
from fitcompress.records.run_results import EpochRecord, StageRecord
from fitcompress.report.document import NONE, Cell, Document, Section, Table, text_or_none
from fitcompress.report.findings import (
    calibration,
    classes,
    curves,
    disagreements,
    doubts,
    latencies,
)
from fitcompress.report.headline import evaluation_split, headline
from fitcompress.report.rows import list_measures, share_cell, speeds_text
from fitcompress.report.run_facts import RunFacts

__all__ = ["build_run_document"]

_SHOWN_NAMES = 3
_MODEL_NAMES = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline"}


def build_run_document(report: RunFacts) -> Document:
    """The report with all sections that are not empty."""
    makers: tuple[Callable[[RunFacts], Section], ...] = (
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


def _comparison(report: RunFacts) -> Section:
    known = report.models
    teacher, student = known.get("teacher"), known.get("student")
    rows = tuple(
        (
            measure.label,
            *(measure.value(model) for model in known.values()),
            Cell(measure.compare(teacher, student) if teacher and student else ""),
        )
        for measure in list_measures(tuple(known.values()))
    )
    columns = ("", *(_MODEL_NAMES[name] for name in known), "Student vs teacher")
    data = report.results.data
    notes = [f"Measured on {evaluation_split(report)}."] if report.is_finished else []
    notes += [data.description] if data and data.description else []
    if "baseline" in known:
        notes.append("Baseline: the same student trained without a teacher.")
    return Section("Comparison", _as_sentences(notes), Table(columns, rows))


def _as_sentences(notes: list[str]) -> str:
    return " ".join(note if note.endswith(".") else f"{note}." for note in notes)


def _costs(report: RunFacts) -> Section:
    curves = report.curves
    rows = tuple(_cost_row(record, curves.get(record.stage, [])) for record in report.stages)
    columns = ("Stage", "Time", "Images", "FLOPs", "Images/s", "Loss", "Top-1")
    note = (
        "FLOPs: of the whole stage, and of each image (the teacher's forward pass and three times"
        " the student's). Loss and top-1: of the last epoch (from the first). Top-1 is"
        " measured on the tenth of the training images that is held out."
    )
    return Section("Cost of each stage", note if curves else "", Table(columns, rows))


def _cost_row(record: StageRecord, epochs: Sequence[EpochRecord]) -> tuple[Cell, ...]:
    losses = [epoch.losses["loss"] for epoch in epochs if "loss" in epoch.losses]
    top1 = [epoch.held_out["top1"] for epoch in epochs if "top1" in epoch.held_out]
    num_epochs, waiting = record.epochs, record.waiting_share
    return (
        Cell(stage_title(record.stage), "" if record.is_finished else "unfinished"),
        Cell(text_or_none(record.seconds, duration_text)),
        Cell(
            text_or_none(record.num_images, integer_text),
            f"{num_epochs} epoch{'s' if num_epochs != 1 else ''}" if num_epochs else "",
        ),
        _flops_cell(record.flops_per_image, record.num_images),
        Cell(
            text_or_none(record.images_per_s, rate_text),
            f"{percent_text(waiting, 0)} waiting" if waiting is not None else "",
        ),
        _last_of(losses, lambda loss: f"{loss:.3g}"),
        _last_of(top1, percent_text),
    )


def _flops_cell(per_image: float | None, num_images: int | None) -> Cell:
    if not per_image or num_images is None:
        return Cell(NONE)
    return Cell(count_text(per_image * num_images), f"{count_text(per_image)} each")


def _architecture(report: RunFacts) -> Section:
    stages = report.plan.stages if report.plan else ()
    rows = tuple(
        (Cell(stage.name), _side_cell(stage.teacher), _side_cell(stage.student)) for stage in stages
    )
    note = (
        "The number of blocks, the output shape and the parameters of each stage of the networks."
    )
    return Section("Architecture", note, Table(("Stage", "Teacher", "Student"), rows))


def _side_cell(side: StageSide | None) -> Cell:
    if side is None:
        return Cell(NONE)
    blocks = f"{side.blocks} block{'s' if side.blocks != 1 else ''}"
    return Cell(f"{blocks}, {shape_text(side.width)}", count_text(side.params))


def _pairs(report: RunFacts) -> Section:
    rows = tuple(
        (
            Cell(pair.hint, shape_text(pair.hint_shape)),
            Cell(pair.guided, shape_text(pair.guided_shape)),
            Cell(pair.regressor or NONE),
        )
        for pair in report.pairs
    )
    columns = ("Hint (teacher)", "Guided (student)", "Regressor")
    return Section("Hints", table=Table(columns, rows, is_numeric=False))


def _exports(report: RunFacts) -> Section:
    rows = tuple(_export_row(record) for record in report.exports)
    sizes = dict.fromkeys(size for one in report.exports for size in one.checked_batches)
    batches = " and ".join(map(str, sizes))
    columns = ("File", "Size", "Largest difference", "Same top-1", "Top-1", "Speed")
    note = (
        f"Each file was run on real images at batch {batches} and compared with the student in"
        " PyTorch: the largest difference between outputs, and the share of images with the same"
        " top-1 class. Top-1: the accuracy of the file on the evaluation images. Speed: compared"
        " with the float32 student in ONNX Runtime, timed in turns."
    )
    return Section("Exports", note, Table(columns, rows))


def _export_row(record: ExportRecord) -> tuple[Cell, ...]:
    speed, _, others = text_or_none(record.latency, speeds_text).partition(", ")
    return (
        Cell(
            record.path.replace("\\", "/").rsplit("/", 1)[-1],
            ", ".join(part for part in (record.format, record.remark) if part),
        ),
        Cell(bytes_text(record.size_bytes)),
        Cell(f"{record.max_abs_diff:.1e}", f"{record.max_rel_diff:.1e} of the largest output"),
        Cell(percent_text(record.top1_agreement)),
        share_cell(record.accuracy),
        Cell(speed, others),
    )


def _frozen(report: RunFacts) -> Section:
    lines = tuple(_frozen_text(place) for place in (report.plan.frozen if report.plan else ()))
    note = "Sizes that the student keeps from the teacher because they cannot be reduced."
    return Section("Frozen sizes", note, lines=lines)


def _frozen_text(place: FrozenSizes) -> str:
    shown = ", ".join(place.tensors[:_SHOWN_NAMES])
    if len(place.tensors) > _SHOWN_NAMES:
        shown += f" and {len(place.tensors) - _SHOWN_NAMES} more"
    sizes = f"size {', '.join(map(str, place.sizes))}" if place.sizes else ""
    head = f"{shown} ({sizes})" if shown and sizes else shown or sizes
    return ": ".join(part for part in (head, place.reason) if part)


def _notices(report: RunFacts) -> Section:
    return Section("Notices", lines=report.notices)


def _reproduction(report: RunFacts) -> Section:
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
    note = (
        "The original command, and a command that repeats the run from its stored recipe."
        if first
        else "This command repeats the run from its stored recipe."
    )
    recipe = ("Recipe", report.recipe_text.strip())
    return Section(
        "Reproduce",
        note,
        code=code + shlex.join(again),
        appendix=recipe if recipe[1] else None,
    )


def _environment(report: RunFacts) -> Section:
    known = report.environment
    versions = {name: version for name, version in (known.get("versions") or {}).items() if version}
    hardware = [known.get(key) for key in ("device", "gpu", "cpu", "platform")]
    threads = threads_text(known["threads"]) if known.get("threads") else ""
    software = {"python": known.get("python"), **versions}
    lines = (
        ", ".join(str(part) for part in (*hardware, threads) if part),
        ", ".join(f"{name} {version}" for name, version in software.items() if version),
    )
    return Section("Environment", lines=tuple(line for line in lines if line))


def _last_of(values: Sequence[float], text: Callable[[float], str]) -> Cell:
    """The last value, with the first as the detail."""
    if not values:
        return Cell(NONE)
    return Cell(text(values[-1]), f"from {text(values[0])}" if len(values) > 1 else "")
