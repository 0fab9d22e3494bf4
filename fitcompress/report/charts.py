"""The content of charts as values; `drawing` draws them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "Bars",
    "Chart",
    "Dots",
    "Key",
    "Line",
    "Lines",
    "MeanRow",
    "Means",
    "Point",
    "Strip",
    "Strips",
]


@dataclass(frozen=True)
class Key:
    """An entry of the legend: its name and one of the page's four colors, or 0 for gray."""

    name: str
    color: int
    is_dashed: bool = False


@dataclass(frozen=True)
class Point:
    """A value, its interval if it has one, and its tooltip. `Dots` do not use `x`."""

    value: float
    x: float = 0
    low: float | None = None
    high: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """Connected points."""

    key: Key
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Lines:
    """A line chart; shares are shown in percent."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    is_share: bool = False
    is_square: bool = False
    """Both axes are shares from 0 to 1, with the diagonal drawn."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """The entries in order."""
        return tuple(line.key for line in self.lines)


@dataclass(frozen=True)
class Strip:
    """A row of measured values, with the median and 95th percentile marked."""

    label: str
    key: Key
    values: tuple[float, ...]
    median: float
    p95: float


@dataclass(frozen=True)
class Strips:
    """A strip plot: distributions below each other over one axis that starts at 0."""

    title: str
    x_label: str
    strips: tuple[Strip, ...]

    @property
    def legend(self) -> tuple[Key, ...]:
        """The entries in order."""
        return tuple(dict.fromkeys(strip.key for strip in self.strips))


@dataclass(frozen=True)
class Dots:
    """A dot plot: shares with their intervals, one row for each name."""

    title: str
    names: tuple[str, ...]
    lines: tuple[Line, ...]
    """Each with one point for each name."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """The entries in order."""
        return tuple(line.key for line in self.lines)


@dataclass(frozen=True)
class Bars:
    """A stacked bar chart of counts."""

    title: str
    x_label: str
    names: tuple[str, ...]
    parts: tuple[tuple[Key, tuple[int, ...]], ...]
    """Each part with its counts, one for each row."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """The entries in order; none for a single part."""
        return tuple(key for key, _ in self.parts) if len(self.parts) > 1 else ()


@dataclass(frozen=True)
class MeanRow:
    """Shares, and the interval of their mean if it has one."""

    name: str
    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Means:
    """All shares of each row, with their mean and its interval."""

    title: str
    rows: tuple[MeanRow, ...]

    @property
    def legend(self) -> tuple[Key, ...]:
        """The mean and the single values."""
        return Key("mean", 2), Key("one seed", 0)


Chart = Lines | Strips | Dots | Bars | Means
