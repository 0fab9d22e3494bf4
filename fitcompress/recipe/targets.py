"""Targets: limits on the student's cost, parsed from texts such as "10%", "2M" or "5ms"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fitcompress.errors import RecipeError

__all__ = ["TARGETS", "Target", "parse_target"]

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12}
_BYTES = {
    "": 1.0,
    "b": 1.0,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "kib": 2.0**10,
    "mib": 2.0**20,
    "gib": 2.0**30,
}
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

TARGETS: Mapping[str, Mapping[str, float]] = {
    "params": _COUNTS,
    "flops": _COUNTS,
    "macs": _COUNTS,
    "size": _BYTES,
    "latency": _SECONDS,
}
"""The kinds of cost that can be limited, each with its units."""


@dataclass(frozen=True)
class Target:
    """A limit on one kind of cost."""

    amount: float
    """A count, bytes or seconds; a fraction of the teacher's cost if `is_share`."""
    is_share: bool = False

    def limit(self, of_teacher: float) -> float:
        """The limit in absolute terms, for a teacher of cost `of_teacher`."""
        return self.amount * of_teacher if self.is_share else self.amount


def parse_target(kind: str, text: str) -> Target:
    """The target in a text: a share of the teacher's cost ("10%"), or a number with a unit.

    Args:
        kind: a key of `TARGETS`.

    Raises:
        RecipeError: the text is neither, or is not above 0.

    >>> parse_target("params", "10%"), parse_target("latency", "5ms")
    (Target(amount=0.1, is_share=True), Target(amount=0.005, is_share=False))
    >>> parse_target("flops", "300M").amount
    300000000.0
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z%]*)\s*", text.lower())
    units = TARGETS[kind]
    if found:
        number, unit = float(found[1]), found[2]
        if number > 0 and unit == "%":
            return Target(number / 100, is_share=True)
        if number > 0 and unit in units:
            return Target(number * units[unit])
    examples = {"latency": "5ms", "size": "2MB"}.get(kind, "2M")
    raise RecipeError(
        f"student.target_{kind} must be a percentage or an amount above 0, got {text!r}",
        code="target-unreadable",
        advice=f"Write a percentage of the teacher's (10%) or an amount ({examples}).",
        setting=f"student.target_{kind}",
        got=text,
    )
