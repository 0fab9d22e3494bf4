"""The rows of a table that compares models. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

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
from fitcompress.records.measurements import Share, Timing
from fitcompress.records.run_results import ModelResult
from fitcompress.report.document import NONE, Cell, text_or_none

__all__ = ["Measure", "list_measures", "share_cell", "speeds_text"]


@dataclass(frozen=True)
class Measure:
    """A row: its label, its cell for a model, and the text that compares a second model with a
    first.
    """

    label: Cell
    value: Callable[[ModelResult], Cell]
    compare: Callable[[ModelResult, ModelResult], str]


def list_measures(models: Sequence[ModelResult]) -> Iterator[Measure]:
    """The rows with a value for at least one of the models."""
    for measure in _every_measure(models):
        if any(measure.value(model).main != NONE for model in models):
            yield measure


def share_cell(measured: Share | None) -> Cell:
    """A share, with its interval as the detail."""
    if not measured:
        return Cell(NONE)
    interval = f"{100 * measured.low:.1f} to {100 * measured.high:.1f}"
    return Cell(percent_text(measured.top1), interval)


def speeds_text(timed: Mapping[str, Timing]) -> str:
    """The speedups of a network by batch size: "batch 1: 2.0x faster, batch 32: 2.0x slower"."""
    speeds = {batch: speed_text(*own.speedup_over()) for batch, own in timed.items()}
    return ", ".join(f"batch {batch}: {speed}" for batch, speed in speeds.items())


def _every_measure(models: Sequence[ModelResult]) -> Iterator[Measure]:
    yield Measure(
        Cell("Top-1", _interval_label(models)),
        lambda model: share_cell(model.accuracy),
        _accuracy_difference,
    )
    yield Measure(
        Cell("Agreement with teacher", "same class"),
        lambda model: share_cell(model.agreement),
        lambda _, after: f"KL {after.agreement.kl:.3f} nats" if after.agreement else "",
    )
    yield Measure(
        Cell("Calibration error", "ECE, 15 bins"),
        lambda model: Cell(percent_text(model.calibration.ece, 2) if model.calibration else NONE),
        lambda *_: "",
    )
    yield _number("Parameters", "", lambda model: model.params, count_text)
    yield _number("MACs", "multiply-adds", lambda model: model.macs, count_text)
    yield _number("FLOPs", "2 x MACs", lambda model: model.flops, count_text)
    yield _number("Depth", "weighted layers", lambda model: model.depth, integer_text)
    yield _number("Size", "float32 weights", lambda model: model.size_bytes, bytes_text)
    for batch in _keys([model.peak_memory_bytes or {} for model in models]):
        yield _peak_memory(batch)
    for runtime in _keys([model.timings for model in models]):
        batches = _keys([model.timings.get(runtime, {}) for model in models])
        for batch in batches:
            yield _latency(runtime, batch, models)
        if batches:
            yield _throughput(runtime, max(batches, key=int))


def _number(
    label: str,
    detail: str,
    value: Callable[[ModelResult], float | None],
    text: Callable[[float], str],
) -> Measure:
    def compare(before: ModelResult, after: ModelResult) -> str:
        one, other = value(before), value(after)
        return ratio_text(one, other) if one and other else ""

    return Measure(
        Cell(label, detail), lambda model: Cell(text_or_none(value(model), text)), compare
    )


def _peak_memory(batch: str) -> Measure:
    def value(model: ModelResult) -> float | None:
        return (model.peak_memory_bytes or {}).get(batch)

    return _number("Peak memory", f"batch {batch}", value, bytes_text)


def _latency(runtime: str, batch: str, models: Sequence[ModelResult]) -> Measure:
    def value(model: ModelResult) -> Cell:
        own = _timing(model, runtime, batch)
        return Cell(ms_text(own.median_ms), f"p95 {ms_text(own.p95_ms)}") if own else Cell(NONE)

    def compare(before: ModelResult, after: ModelResult) -> str:
        one, other = (_timing(model, runtime, batch) for model in (before, after))
        return speed_text(*other.speedup_over(one)) if one and other else ""

    some = next(timing for model in models if (timing := _timing(model, runtime, batch)))
    detail = f"median of {some.n}, {threads_text(some.threads, some.device)}"
    return Measure(Cell(f"Batch {batch}, {runtime_name(runtime)}", detail), value, compare)


def _throughput(runtime: str, batch: str) -> Measure:
    def value(model: ModelResult) -> Cell:
        own = _timing(model, runtime, batch)
        return Cell(text_or_none(own.images_per_s if own else None, rate_text))

    label = Cell(f"Images/s, {runtime_name(runtime)}", f"batch {batch}")
    return Measure(label, value, lambda *_: "")


def _timing(model: ModelResult, runtime: str, batch: str) -> Timing | None:
    return model.timings.get(runtime, {}).get(batch)


_V = TypeVar("_V")


def _keys(mappings: Sequence[Mapping[str, _V]]) -> list[str]:
    """The keys of all mappings, in order and without repetitions."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))


def _interval_label(models: Sequence[ModelResult]) -> str:
    counts = {model.accuracy.n for model in models if model.accuracy}
    return ", ".join(["95 % interval", *(f"n = {integer_text(n)}" for n in sorted(counts))])


def _accuracy_difference(before: ModelResult, after: ModelResult) -> str:
    one, other = before.accuracy, after.accuracy
    return points_text(other.top1 - one.top1) if one and other else ""
