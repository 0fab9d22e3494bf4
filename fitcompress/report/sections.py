"""The report as tables of words, the same for every form; the forms only draw. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fitcompress.report.headline import evaluation_split, runtime_name
from fitcompress.report.report import Report
from fitcompress.report.words import (
    bytes_text,
    count_text,
    duration_text,
    integer_text,
    ms_text,
    percent_text,
    points_text,
    ratio_text,
    shape_text,
)

__all__ = ["Cell", "Section", "Table", "build_sections", "stage_title"]

_Model = Mapping[str, Any]
_NONE = "-"
_SHOWN_NAMES = 3
_STAGE_TITLES = {
    "teacher": "Teacher adapted to the data",
    "stage1": "Stage 1: hint training",
    "stage2": "Stage 2: distillation",
    "baseline": "Baseline: no teacher",
}


@dataclass(frozen=True)
class Cell:
    """What stands in a table: the thing itself, and what is said about it in smaller print."""

    main: str
    detail: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first names the row, the others are numbers if `is_numeric`."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_numeric: bool = True


@dataclass(frozen=True)
class Section:
    """A titled part: a table, or lines, or text to copy as it is."""

    title: str
    note: str = ""
    table: Table | None = None
    lines: tuple[str, ...] = ()
    code: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.lines or self.code or (self.table and self.table.rows))


def build_sections(report: Report) -> tuple[Section, ...]:
    """Every part of the report that has something to show, in order."""
    makers: tuple[Callable[[Report], Section], ...] = (
        _comparison,
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
    return tuple(section for section in sections if not section.is_empty)


def stage_title(stage: str) -> str:
    """The stage as people call it.

    >>> stage_title("stage1"), stage_title("export")
    ('Stage 1: hint training', 'Export')
    """
    return _STAGE_TITLES.get(stage, stage.replace("_", " ").capitalize())


def _comparison(report: Report) -> Section:
    models = {name: report.model(name) for name in ("teacher", "student", "baseline")}
    known = {name: model for name, model in models.items() if model}
    rows: list[tuple[Cell, ...]] = []
    for label, value, compare in _measures(report, known):
        cells = [value(name, model) for name, model in known.items()]
        if any(cell.main != _NONE for cell in cells):
            rows.append((label, *cells, Cell(compare())))
    names = {"teacher": "Teacher", "student": "Student", "baseline": "Baseline"}
    columns = ("", *(names[name] for name in known), "Student vs teacher")
    data = report.results.get("data")
    described = data.get("description", "") if isinstance(data, Mapping) else str(data or "")
    note = f"Measured on {evaluation_split(report)}." if report.is_finished else ""
    note = f"{note} {described}".strip()
    if "baseline" in known:
        note += " Baseline: the same student, trained without a teacher."
    return Section("Comparison", note.strip(), Table(columns, tuple(rows)))


_Measure = tuple[Cell, Callable[[str, _Model], Cell], Callable[[], str]]


def _measures(report: Report, known: Mapping[str, _Model]) -> Iterable[_Measure]:
    """Rows of the comparison: label, value of a model, words on student against teacher."""
    yield Cell("Top-1", _interval_label(known)), _accuracy_cell, lambda: _accuracy_difference(known)
    agreement = report.results.get("agreement")
    if agreement:
        yield (
            Cell("Agrees with teacher", "same class"),
            lambda name, _: _share_cell(agreement) if name == "student" else Cell(_NONE),
            lambda: f"KL {agreement['kl']:.3f} nats" if agreement.get("kl") is not None else "",
        )
    yield _plain("Parameters", "", "params", count_text, known)
    yield _plain("MACs", "multiply-adds", "macs", count_text, known)
    yield _plain("FLOPs", "2 x MACs", "flops", count_text, known)
    yield _plain("Depth", "weighted layers", "depth", integer_text, known)
    yield _plain("Size", "float32 weights", "size_bytes", bytes_text, known)
    yield _plain("Peak memory", "one image", "peak_memory_bytes", bytes_text, known)
    yield from _latencies(known)


def _plain(
    label: str, detail: str, key: str, words: Callable[[float], str], known: Mapping[str, _Model]
) -> _Measure:
    def value(_: str, model: _Model) -> Cell:
        return Cell(_NONE if model.get(key) is None else words(model[key]))

    def compare() -> str:
        before, after = (known.get(name, {}).get(key) for name in ("teacher", "student"))
        return ratio_text(before, after) if before and after else ""

    return Cell(label, detail), value, compare


def _latencies(known: Mapping[str, _Model]) -> Iterable[_Measure]:
    keys = {
        (runtime, batch): None
        for model in known.values()
        for runtime, batches in model["latency"].items()
        for batch in batches
    }
    for runtime, batch in keys:
        yield _latency_measure(runtime, batch, known)


def _latency_measure(runtime: str, batch: str, known: Mapping[str, _Model]) -> _Measure:
    def timing(model: _Model) -> Mapping[str, Any]:
        found: Mapping[str, Any] = model.get("latency", {}).get(runtime, {}).get(batch, {})
        return found

    def value(_: str, model: _Model) -> Cell:
        own = timing(model)
        if not own:
            return Cell(_NONE)
        p95 = f"p95 {ms_text(own['p95_ms'])}" if "p95_ms" in own else ""
        return Cell(ms_text(own["median_ms"]), p95)

    def compare() -> str:
        before, after = (timing(known.get(name, {})) for name in ("teacher", "student"))
        if not before or not after:
            return ""
        speedup = after.get("speedup") or before["median_ms"] / after["median_ms"]
        return ratio_text(speedup, 1.0, "faster", "slower")

    some = next((timing(model) for model in known.values() if timing(model)), {})
    threads = some.get("threads")
    of = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
    return Cell(f"Batch {batch}, {runtime_name(runtime)}", f"median{of}"), value, compare


def _accuracy_cell(name: str, model: _Model) -> Cell:
    del name
    measured = model.get("accuracy")
    return _share_cell(measured) if measured else Cell(_NONE)


def _interval_label(known: Mapping[str, _Model]) -> str:
    counts = {model["accuracy"]["n"] for model in known.values() if model.get("accuracy")}
    return ", ".join(["95 % interval", *(f"n = {integer_text(n)}" for n in sorted(counts))])


def _share_cell(measured: Mapping[str, Any]) -> Cell:
    interval = f"{100 * measured['low']:.1f} to {100 * measured['high']:.1f}"
    return Cell(percent_text(measured["top1"]), interval)


def _accuracy_difference(known: Mapping[str, _Model]) -> str:
    before, after = (known.get(name, {}).get("accuracy") for name in ("teacher", "student"))
    return points_text(after["top1"] - before["top1"]) if before and after else ""


def _costs(report: Report) -> Section:
    rows = tuple(
        _cost_row(record, report.curves.get(record["stage"], [])) for record in report.stages
    )
    columns = ("Stage", "Time", "Epochs", "Images", "Images/s", "Loss", "Held-out top-1")
    note = (
        "Below the images: FLOPs of each in a training step, the teacher's part once, the student's"
        " three times. Below their rate: share of the time spent waiting for them. Loss and"
        " held-out top-1: first to last epoch; held out is a tenth of the training images."
    )
    return Section("What each stage cost", note if report.curves else "", Table(columns, rows))


def _cost_row(record: Mapping[str, Any], epochs: list[dict[str, Any]]) -> tuple[Cell, ...]:
    title = stage_title(record["stage"])
    state = "" if record.get("is_finished") else "unfinished"
    losses = [epoch["losses"]["loss"] for epoch in epochs if "loss" in epoch["losses"]]
    top1 = [epoch["held_out"]["top1"] for epoch in epochs if "top1" in epoch["held_out"]]
    return (
        Cell(title, state),
        Cell(_words(record.get("seconds"), duration_text)),
        Cell(_words(record.get("epochs") or None, integer_text)),
        Cell(
            _words(record.get("num_images"), integer_text),
            count_text(record["flops_per_image"]) if record.get("flops_per_image") else "",
        ),
        Cell(
            _words(record.get("images_per_s"), lambda rate: f"{rate:,.0f}"),
            f"{waiting:.0%} wait" if (waiting := record.get("waiting_share")) is not None else "",
        ),
        Cell(_first_to_last(losses, lambda loss: f"{loss:.3g}")),
        Cell(_first_to_last(top1, percent_text)),
    )


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
        return Cell(_NONE)
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
        for pair in report.plan.get("pairs", ())
    )
    columns = ("Hint (teacher)", "Guided (student)", "Regressor")
    return Section("Hints", "", Table(columns, rows, is_numeric=False))


def _regressor_text(regressor: object) -> str:
    if isinstance(regressor, Mapping):
        return ", ".join(f"{key} {shape_text(value)}" for key, value in regressor.items())
    return str(regressor or _NONE)


def _exports(report: Report) -> Section:
    rows = tuple(_export_row(record) for record in report.exports)
    columns = ("Format", "File", "Size", "Largest difference", "Same top-1", "Checked")
    note = "Each file was run on real images and compared with the student in PyTorch."
    return Section("Exports", note, Table(columns, rows))


def _export_row(record: Mapping[str, Any]) -> tuple[Cell, ...]:
    batches = " and ".join(str(size) for size in record.get("checked_batches", ()))
    relative = record.get("max_rel_diff")
    return (
        Cell(str(record.get("format", _NONE))),
        Cell(str(record.get("path", _NONE)).replace("\\", "/").rsplit("/", 1)[-1]),
        Cell(_words(record.get("size_bytes"), bytes_text)),
        Cell(
            _words(record.get("max_abs_diff"), lambda value: f"{value:.1e}"),
            f"{relative:.1e} of the largest output" if relative is not None else "",
        ),
        Cell(_words(record.get("top1_agreement"), percent_text)),
        Cell(f"batch {batches}" if batches else _NONE),
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
    return Section("Notices", "", lines=report.notices)


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
    return Section("Reproduce", note, code=code + shlex.join(again))


def _environment(report: Report) -> Section:
    known = report.environment
    versions = {k: v for k, v in (known.get("versions") or {}).items() if v}
    hardware = [known.get(key) for key in ("device", "gpu", "cpu", "platform")]
    threads = f"{known['threads']} threads" if known.get("threads") else ""
    lines = (
        ", ".join(str(part) for part in (*hardware, threads) if part),
        ", ".join(f"{k} {v}" for k, v in {"python": known.get("python"), **versions}.items() if v),
    )
    return Section("Made with", "", lines=tuple(line for line in lines if line))


def _words(value: Any, words: Callable[[Any], str]) -> str:
    return _NONE if value is None else words(value)


def _first_to_last(values: list[Any], words: Callable[[Any], str]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return _NONE
    first, last = words(known[0]), words(known[-1])
    return last if len(known) == 1 else f"{first} to {last}"
