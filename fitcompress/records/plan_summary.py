"""`plan.json`: the student of a run and its hint pairs."""

from __future__ import annotations

from dataclasses import dataclass

from fitcompress.records.json_record import Record
from fitcompress.records.measurements import NetworkCosts

__all__ = ["FrozenSizes", "PairSummary", "PlanSummary", "StageSide", "StageSummary"]


@dataclass(frozen=True, kw_only=True)
class PairSummary(Record):
    """A teacher layer (the hint) and the student layer that learns it."""

    hint: str
    guided: str
    hint_shape: tuple[int, ...] = ()
    guided_shape: tuple[int, ...] = ()
    regressor: str | None = None
    """Its description."""


@dataclass(frozen=True, kw_only=True)
class StageSide(Record):
    """Consecutive blocks of one network with the same output shape."""

    blocks: int
    """How many."""
    width: tuple[int, ...]
    """Their output shape without the batch."""
    params: int
    first: str
    """Name of the first block."""
    last: str


@dataclass(frozen=True, kw_only=True)
class StageSummary(Record):
    """Stages at the same place in both networks; None in a network that has fewer."""

    name: str
    teacher: StageSide | None
    student: StageSide | None


@dataclass(frozen=True, kw_only=True)
class FrozenSizes(Record):
    """Sizes that the student keeps from the teacher."""

    reason: str
    sizes: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()
    """Names of the weights that have them."""


@dataclass(frozen=True, kw_only=True)
class PlanSummary(Record):
    """The plan of a run for people, scripts and a resumed run."""

    teacher: NetworkCosts
    student: NetworkCosts
    pairs: tuple[PairSummary, ...] = ()
    learns_hints: bool = True
    """Whether the pairs are used in training."""
    stages: tuple[StageSummary, ...] = ()
    frozen: tuple[FrozenSizes, ...] = ()
    notices: tuple[str, ...] = ()
    depth_mult: float | None
    """None for a custom student, like `width_mult`."""
    width_mult: float | None
    most_macs: float | None
    """The limit on multiply-adds that the student was searched with."""
    init: str = ""
    """The student's first weights: "inherit", "random" or "own"."""
