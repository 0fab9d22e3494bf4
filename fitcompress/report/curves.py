"""Learning curves as plain SVG that takes colours and letters from the page around it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fitcompress.report.report import Report
from fitcompress.report.sections import stage_title

__all__ = ["Chart", "Series", "build_charts", "draw_svg", "nice_ticks"]

_WIDTH, _HEIGHT = 460, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34


@dataclass(frozen=True)
class Series:
    """A named line of (epoch, value)."""

    name: str
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Chart:
    """Lines over the same epochs; as percentages where `is_share`."""

    title: str
    series: tuple[Series, ...]
    is_share: bool = False


def build_charts(report: Report) -> tuple[Chart, ...]:
    """Held-out accuracy of all stages together, then the losses of each."""
    curves = report.curves
    accuracies = (
        _series(stage_title(stage), rows, "held_out", "top1") for stage, rows in curves.items()
    )
    charts = [
        Chart("Held-out top-1", tuple(line for line in accuracies if line.points), is_share=True)
    ]
    for stage, rows in curves.items():
        lines = (
            _series("training", rows, "losses", "loss"),
            _series("held out", rows, "held_out", "loss"),
        )
        charts.append(
            Chart(f"{stage_title(stage)}, loss", tuple(line for line in lines if line.points))
        )
    return tuple(chart for chart in charts if chart.series)


def draw_svg(chart: Chart) -> str:
    """The chart as one `<svg>` element; its colours are the page's `--series-1` and so on."""
    epochs = [epoch for line in chart.series for epoch, _ in line.points]
    values = [value for line in chart.series for _, value in line.points]
    ticks = nice_ticks(min(values), max(values))
    place = _Place(min(epochs), max(max(epochs), min(epochs) + 1), ticks[0], ticks[-1])
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        *_value_axis(ticks, place, chart.is_share),
        *_epoch_axis(min(epochs), max(epochs), place),
        *(
            part
            for k, line in enumerate(chart.series, 1)
            for part in _line(line, k, place, chart.is_share)
        ),
        "</svg>",
    ]
    return "\n".join(parts)


def nice_ticks(low: float, high: float, count: int = 4) -> tuple[float, ...]:
    """Round numbers, about `count` steps apart, from at most `low` to at least `high`.

    >>> nice_ticks(0.13, 0.88)
    (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    """
    if high <= low:
        spread = abs(high) * 0.1 or 1.0
        low, high = low - spread, high + spread
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(k * step, 12) for k in range(first, last + 1))


@dataclass(frozen=True)
class _Place:
    """From epochs and values to places in the drawing."""

    first: int
    last: int
    low: float
    high: float

    def x(self, epoch: float) -> float:
        share = (epoch - self.first) / (self.last - self.first)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _series(name: str, rows: Sequence[Mapping[str, Any]], part: str, key: str) -> Series:
    values = ((row["epoch"], row[part].get(key)) for row in rows)
    return Series(name, tuple((e, v) for e, v in values if v is not None and math.isfinite(v)))


def _value_axis(ticks: Sequence[float], place: _Place, is_share: bool) -> list[str]:
    parts = []
    for tick in ticks:
        y = place.y(tick)
        label = f"{100 * tick:.3g} %" if is_share else f"{tick:.4g}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{label}</text>')
    return parts


def _epoch_axis(first: int, last: int, place: _Place) -> list[str]:
    step = max(1, math.ceil((last - first) / 6))
    y = _HEIGHT - _BOTTOM + 18
    parts = [
        f'<text x="{place.x(epoch)}" y="{y}" text-anchor="middle">{epoch}</text>'
        for epoch in range(first, last + 1, step)
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*parts, f'<text x="{middle}" y="{_HEIGHT - 2}" text-anchor="middle">epoch</text>']


def _line(line: Series, number: int, place: _Place, is_share: bool) -> list[str]:
    places = [(place.x(epoch), place.y(value)) for epoch, value in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    dots = []
    for (x, y), (epoch, value) in zip(places, line.points, strict=True):
        words = f"{100 * value:.1f} %" if is_share else f"{value:.4g}"
        hint = f"<title>{escape(line.name)}, epoch {epoch}: {words}</title>"
        dots.append(f'<circle class="s{number}" cx="{x}" cy="{y}" r="3">{hint}</circle>')
    return [f'<polyline class="s{number}" points="{path}"/>', *dots]
