"""What the charts of a report show, as values; `drawing` draws them. Pure."""

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
    """A name in the legend, and how it is drawn: one of the page's four colours, or 0 for gray."""

    name: str
    color: int
    is_dashed: bool = False


@dataclass(frozen=True)
class Point:
    """A place, the interval of its value where it has one, and what is said when one points at it.

    In `Dots` only the value counts.
    """

    value: float
    x: float = 0
    low: float | None = None
    high: float | None = None
    hint: str = ""


@dataclass(frozen=True)
class Line:
    """Points that belong together."""

    key: Key
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Lines:
    """Values over something; shares are shown in percent."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    is_share: bool = False
    is_square: bool = False
    """Both axes are shares from 0 to 1, with the diagonal drawn."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """Its keys in order."""
        return tuple(line.key for line in self.lines)


@dataclass(frozen=True)
class Strip:
    """Measured values in a row of their own, with the median and 95th percentile marked."""

    label: str
    key: Key
    values: tuple[float, ...]
    median: float
    p95: float


@dataclass(frozen=True)
class Strips:
    """Distributions one below the other, over one axis that starts at 0."""

    title: str
    x_label: str
    strips: tuple[Strip, ...]

    @property
    def legend(self) -> tuple[Key, ...]:
        """Its keys in order."""
        return tuple(dict.fromkeys(strip.key for strip in self.strips))


@dataclass(frozen=True)
class Dots:
    """Shares with their intervals for each of some names, one row a name."""

    title: str
    names: tuple[str, ...]
    lines: tuple[Line, ...]
    """Each with a point for every name."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """Its keys in order."""
        return tuple(line.key for line in self.lines)


@dataclass(frozen=True)
class Bars:
    """Counts in rows, each made of the same parts."""

    title: str
    x_label: str
    names: tuple[str, ...]
    parts: tuple[tuple[Key, tuple[int, ...]], ...]
    """Of each part its share of every row."""

    @property
    def legend(self) -> tuple[Key, ...]:
        """Its keys in order; a single part needs none."""
        return tuple(key for key, _ in self.parts) if len(self.parts) > 1 else ()


@dataclass(frozen=True)
class MeanRow:
    """Shares of one kind, and the interval of their mean where it has one."""

    name: str
    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Means:
    """Shares in rows, every one of them, with their mean and its interval."""

    title: str
    rows: tuple[MeanRow, ...]

    @property
    def legend(self) -> tuple[Key, ...]:
        """The mean, and what it is of."""
        return Key("mean", 2), Key("one seed", 0)


Chart = Lines | Strips | Dots | Bars | Means
