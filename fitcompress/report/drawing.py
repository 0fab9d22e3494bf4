"""Charts as SVG for an HTML page, drawn by matplotlib.

Colors become CSS variables, so that a chart follows the light and dark theme of the page, and text
uses the page's font. The same chart gives the same bytes. Only `page` imports this module.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, cast

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fitcompress.formatting import ms_text
from fitcompress.report.charts import (
    Bars,
    Chart,
    Dots,
    Key,
    Line,
    Lines,
    Means,
    Point,
    Strip,
    Strips,
)

__all__ = ["draw_svg"]

_WIDTH = 5.0
"""Inches; 360 units of the SVG, about the width of a phone."""
_ROW = 0.34
_MOST_BESIDE, _MOST_ABOVE = 20, 54
"""Maximum number of characters of a name beside a row, and above it."""
_VARIABLES = {
    "#5b6675": "soft",
    "#dde2e8": "line",
    "#1b2330": "ink",
    "#ffffff": "card",
    "#b4bcc6": "series-0",
    "#1d5fbf": "series-1",
    "#c2410c": "series-2",
    "#15803d": "series-3",
    "#7e22ce": "series-4",
}
"""The page's CSS variable of each color of its light theme, which matplotlib draws with."""
_COLORS = {name: color for color, name in _VARIABLES.items()}
_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 12,
    "text.color": _COLORS["soft"],
    "axes.labelcolor": _COLORS["soft"],
    "axes.edgecolor": _COLORS["line"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "grid.color": _COLORS["line"],
    "grid.linewidth": 0.8,
    "xtick.color": _COLORS["soft"],
    "ytick.color": _COLORS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "path.simplify": False,
}
_UNCUT: dict[str, Any] = {"marker": "o", "clip_on": False}
"""Markers at the edge are not cut off, and the SVG needs no clip paths."""


def draw_svg(chart: Chart, name: str) -> str:
    """The chart as an `<svg>` element; elements with different names share no id."""
    with mpl.rc_context():
        mpl.rcdefaults()  # ignores the user's matplotlibrc
        cast(Any, mpl.rcParams).update(_SETTINGS | {"svg.hashsalt": name})
        hints = _Hints()
        figure = _DRAWERS[type(chart)](chart, hints)
        drawn = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", metadata=metadata)
    return _tidied(drawn.getvalue(), chart.title, hints)


class _Hints(dict[str, Sequence[str]]):
    """The tooltips of each group of markers, by the id of the group."""

    def of(self, points: Iterable[Point]) -> str:
        """A new id for the markers of these points."""
        name = f"hints-{len(self)}"
        self[name] = [point.hint for point in points]
        return name


# --- the kinds of charts -----------------------------------------------------------------------


def _draw_lines(chart: Lines, hints: _Hints) -> Figure:
    figure, axes = _new_figure(3.2 if not chart.is_square else 4.4)
    for line in chart.lines:
        xs, ys = [p.x for p in line.points], [p.value for p in line.points]
        color, dashes = _color(line.key), "--" if line.key.is_dashed else "-"
        face, gid = _COLORS["card"] if line.key.is_dashed else color, hints.of(line.points)
        axes.plot(xs, ys, color=color, markerfacecolor=face, linestyle=dashes, gid=gid, **_UNCUT)
        for point in line.points:
            if point.low is not None and point.high is not None:
                ends = [point.low, point.high]
                axes.plot([point.x] * 2, ends, color=color, linewidth=1, alpha=0.6, clip_on=False)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    if chart.is_square:
        axes.plot([0, 1], [0, 1], color=_COLORS["soft"], linewidth=1, linestyle=":", zorder=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.xaxis.set_major_formatter(_percent())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
        axes.margins(x=0.02, y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if chart.is_share:
        axes.yaxis.set_major_formatter(_percent())
    return figure


def _draw_strips(chart: Strips, hints: _Hints) -> Figure:
    del hints
    figure, axes = _new_figure(0.7 + 0.55 * len(chart.strips))
    end = 1.15 * max(strip.p95 for strip in chart.strips) or 1.0
    for row, strip in enumerate(chart.strips):
        shown = [value for value in strip.values if value <= end]
        places = [row + 0.2 * _spread(k) for k in range(len(shown))]
        looks: dict[str, Any] = {"color": _color(strip.key), "alpha": 0.45, "markeredgewidth": 0}
        axes.plot(shown, places, linestyle="", **looks, **_UNCUT)
        for value, half, width in ((strip.median, 0.3, 2.2), (strip.p95, 0.22, 1.2)):
            ends = [row - half, row + half]
            axes.plot([value] * 2, ends, color=_COLORS["ink"], linewidth=width, clip_on=False)
        _name_row(axes, row - 0.32, strip.label + _beyond(strip, end))
    axes.set(xlim=(0, end), ylim=(len(chart.strips) - 0.6, -0.75))
    axes.set_xlabel(chart.x_label)
    return figure


def _beyond(strip: Strip, end: float) -> str:
    """Text for calls that took longer than the axis shows."""
    longer = [value for value in strip.values if value > end]
    return f" ({len(longer)} more, to {ms_text(max(longer))})" if longer else ""


def _draw_dots(chart: Dots, hints: _Hints) -> Figure:
    figure, axes = _new_figure(0.7 + _ROW * len(chart.names))
    for number, line in enumerate(chart.lines):
        shift = 0.32 * (number - (len(chart.lines) - 1) / 2)
        rows = [row + shift for row in range(len(chart.names))]
        _draw_intervals(axes, line, rows)
        values = [point.value for point in line.points]
        gid = hints.of(line.points)
        axes.plot(values, rows, linestyle="", color=_color(line.key), gid=gid, **_UNCUT)
    _name_rows(axes, chart.names)
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Writes the names beside the rows of a chart of shares."""
    axes.set_yticks(range(len(names)), [_shortened(name, _MOST_BESIDE) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(_percent())
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _draw_intervals(axes: Axes, line: Line, rows: Sequence[float]) -> None:
    for point, row in zip(line.points, rows, strict=True):
        if point.low is not None and point.high is not None:
            ends = [point.low, point.high]
            axes.plot(ends, [row] * 2, color=_color(line.key), linewidth=1.2, clip_on=False)


def _draw_bars(chart: Bars, hints: _Hints) -> Figure:
    del hints
    figure, axes = _new_figure(0.7 + 0.45 * len(chart.names))
    starts = [0] * len(chart.names)
    for key, counts in chart.parts:
        rows = range(len(counts))
        axes.barh(rows, counts, 0.36, starts, color=_color(key), clip_on=False)
        starts = [start + count for start, count in zip(starts, counts, strict=True)]
    for row, (name, total) in enumerate(zip(chart.names, starts, strict=True)):
        _name_row(axes, row - 0.2, f"{name}: {total}")
    axes.set_yticks([])
    axes.set_ylim(len(chart.names) - 0.6, -0.85)
    axes.set_xlabel(chart.x_label)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def _draw_means(chart: Means, hints: _Hints) -> Figure:
    figure, axes = _new_figure(0.7 + 1.2 * _ROW * len(chart.rows))
    mean_key, seed_key = chart.legend
    for row, line in enumerate(chart.rows):
        points = [Point(value, hint=f"{100 * value:.2f} %") for value in line.values]
        places = [row + 0.22] * len(points)
        seeds: dict[str, Any] = {"color": _color(seed_key), "gid": hints.of(points)}
        axes.plot([*line.values], places, linestyle="", **seeds, **_UNCUT)
        mean = fmean(line.values)
        if line.low is not None and line.high is not None:
            axes.plot([line.low, line.high], [row] * 2, color=_color(mean_key), clip_on=False)
        gid = hints.of([Point(mean, hint=f"{line.name}: {100 * mean:.2f} %")])
        axes.plot([mean], [row], linestyle="", color=_color(mean_key), gid=gid, **_UNCUT)
    _name_rows(axes, [line.name for line in chart.rows])
    return figure


_DRAWERS: dict[type, Callable[[Any, _Hints], Figure]] = {
    Lines: _draw_lines,
    Strips: _draw_strips,
    Dots: _draw_dots,
    Bars: _draw_bars,
    Means: _draw_means,
}


# --- what they share ---------------------------------------------------------------------------


def _new_figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.add_subplot()


def _color(key: Key) -> str:
    return _COLORS[f"series-{key.color}"]


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda share, _: f"{100 * share:.3g} %")


def _name_row(axes: Axes, row: float, name: str) -> None:
    """Writes a name above a row: beside it there is too little room on a phone."""
    text = axes.text(0, row, _shortened(name, _MOST_ABOVE), va="bottom", color=_COLORS["soft"])
    text.set_in_layout(False)  # a long name would take the room of the rows
    axes.set_yticks([])


def _spread(number: int) -> float:
    """A vertical offset in -1..1, unlike those of its neighbors: multiples of the golden ratio."""
    return 2 * ((number * 0.6180339887) % 1) - 1


def _shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


# --- from matplotlib's SVG to an element of the page ----------------------------------------------

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_DROPPED = tuple(f"{{{_SVG}}}{tag}" for tag in ("metadata", "style", "clipPath"))
"""Metadata, style rules that would apply to the whole page, and unused clip paths."""
_NUMBER = re.compile(r"-?\d+\.\d{3,}")


def _tidied(file: str, title: str, hints: _Hints) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(file)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in _DROPPED:
                parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {"role": "img", "aria-label": title}
    for group in root.iter(f"{{{_SVG}}}g"):
        marks = group.iter(f"{{{_SVG}}}use")
        for mark, hint in zip(marks, hints.get(group.get("id", ""), ()), strict=False):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = hint
    known = {use.get(f"{{{_XLINK}}}href", "")[1:] for use in root.iter(f"{{{_SVG}}}use")}
    for element in root.iter():
        element.attrib.pop("clip-path", None)
        if element.get("id") not in known:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            element.set(name, _themed(name, value))
    return ElementTree.tostring(root, encoding="unicode")


def _themed(name: str, value: str) -> str:
    """An attribute with the page's colors and font, and without invisible digits."""
    if name == "style":
        for color, variable in _VARIABLES.items():
            value = value.replace(color, f"var(--{variable}, {color})")
        value = re.sub(r"font-family: [^;]*;", "", value)
        value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)  # before matplotlib 3.11
    if name in ("d", "x", "y", "transform", "style"):
        value = _NUMBER.sub(lambda match: f"{float(match[0]):.2f}", value)
    return " ".join(value.split())
