"""What is measured of a model, row by row and in words; every comparison is made of these. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitcompress.formatting import (
    bytes_text,
    count_text,
    integer_text,
    ms_text,
    percent_text,
    points_text,
    rate_text,
    ratio_text,
    runtime_name,
    speed_text,
    threads_text,
)
from fitcompress.report.document import NONE, Cell

__all__ = ["Measure", "Model", "list_measures", "share_cell"]

Model = Mapping[str, Any]
"""As `Report.model` gives it."""


@dataclass(frozen=True)
class Measure:
    """One row: its label, its value for a model, and words on a second model against a first."""

    label: Cell
    value: Callable[[Model], Cell]
    compare: Callable[[Model, Model], str]


def list_measures(models: Sequence[Model]) -> Iterator[Measure]:
    """All rows about which something is known of one of the models."""
    for measure in _every_measure(models):
        if any(measure.value(model).main != NONE for model in models):
            yield measure


def share_cell(measured: Mapping[str, Any] | None) -> Cell:
    """A share with its interval in small print."""
    if not measured:
        return Cell(NONE)
    interval = f"{100 * measured['low']:.1f} to {100 * measured['high']:.1f}"
    return Cell(percent_text(measured["top1"]), interval)


def _every_measure(models: Sequence[Model]) -> Iterator[Measure]:
    yield Measure(
        Cell("Top-1", _interval_label(models)),
        lambda model: share_cell(model.get("accuracy")),
        _accuracy_difference,
    )
    yield Measure(
        Cell("Agrees with teacher", "same class"),
        lambda model: share_cell(model.get("agreement")),
        _divergence,
    )
    yield Measure(
        Cell("Calibration error", "ECE, 15 bins"),
        lambda model: _cell(_inner(model, "calibration", "ece"), lambda ece: percent_text(ece, 2)),
        lambda *_: "",
    )
    yield _plain("Parameters", "", ("params",), count_text)
    yield _plain("MACs", "multiply-adds", ("macs",), count_text)
    yield _plain("FLOPs", "2 x MACs", ("flops",), count_text)
    yield _plain("Depth", "weighted layers", ("depth",), integer_text)
    yield _plain("Size", "float32 weights", ("size_bytes",), bytes_text)
    for batch in _keys(models, "peak_memory_bytes"):
        yield _plain("Peak memory", f"batch {batch}", ("peak_memory_bytes", batch), bytes_text)
    for runtime in _keys(models, "latency"):
        batches = _keys([model.get("latency", {}) for model in models], runtime)
        for batch in batches:
            yield _latency(runtime, batch, models)
        if batches:
            yield _throughput(runtime, max(batches, key=int))


def _plain(label: str, detail: str, path: Sequence[str], words: Callable[[float], str]) -> Measure:
    def compare(before: Model, after: Model) -> str:
        one, other = _inner(before, *path), _inner(after, *path)
        return ratio_text(one, other) if one and other else ""

    return Measure(Cell(label, detail), lambda model: _cell(_inner(model, *path), words), compare)


def _latency(runtime: str, batch: str, models: Sequence[Model]) -> Measure:
    def value(model: Model) -> Cell:
        own = _inner(model, "latency", runtime, batch)
        if not own:
            return Cell(NONE)
        return Cell(ms_text(own["median_ms"]), f"p95 {ms_text(own['p95_ms'])}")

    def compare(before: Model, after: Model) -> str:
        one, other = (_inner(model, "latency", runtime, batch) for model in (before, after))
        if not one or not other:
            return ""
        return speed_text(other, one)

    found = (_inner(model, "latency", runtime, batch) for model in models)
    some: Mapping[str, Any] = next(timing for timing in found if timing)
    detail = f"median of {some['n']}, {threads_text(some)}"
    return Measure(Cell(f"Batch {batch}, {runtime_name(runtime)}", detail), value, compare)


def _throughput(runtime: str, batch: str) -> Measure:
    path = ("latency", runtime, batch, "images_per_s")
    label = Cell(f"Images/s, {runtime_name(runtime)}", f"batch {batch}")
    return Measure(label, lambda model: _cell(_inner(model, *path), rate_text), lambda *_: "")


def _cell(value: Any, words: Callable[[Any], str]) -> Cell:
    return Cell(NONE if value is None else words(value))


def _inner(model: Model, *path: str) -> Any:
    """What lies at the end of the path, or None."""
    value: Any = model
    for key in path:
        value = (value or {}).get(key)
    return value


def _keys(models: Sequence[Model], name: str) -> list[str]:
    """All keys of the mapping `name` of any model, in the order they come."""
    return list(dict.fromkeys(key for model in models for key in model.get(name) or ()))


def _interval_label(models: Sequence[Model]) -> str:
    counts = {model["accuracy"]["n"] for model in models if model.get("accuracy")}
    return ", ".join(["95 % interval", *(f"n = {integer_text(n)}" for n in sorted(counts))])


def _accuracy_difference(before: Model, after: Model) -> str:
    one, other = before.get("accuracy"), after.get("accuracy")
    return points_text(other["top1"] - one["top1"]) if one and other else ""


def _divergence(_: Model, after: Model) -> str:
    kl = _inner(after, "agreement", "kl")
    return f"KL {kl:.3f} nats" if kl is not None else ""
