"""When the values of a forward method are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from fitcompress.exporters.python.loops import Loop, joined_slots
from fitcompress.exporters.python.modules import Piece, Slot, Step

__all__ = ["Uses", "find_uses", "read_slots"]


@dataclass(frozen=True)
class Uses:
    """Reads of each value by the steps, numbered from 0, and by the `return` behind them."""

    last: dict[Slot, int] = field(default_factory=dict)
    count: Counter[Slot] = field(default_factory=Counter)

    def is_live(self, slot: Slot, step: int) -> bool:
        """Whether a value is read after a step."""
        return self.last.get(slot, -1) > step


def find_uses(piece: Piece, steps: Sequence[Step | Loop]) -> Uses:
    """The uses of all values in a piece. A list of values uses each of them."""
    uses = Uses()
    reads = [*map(read_slots, steps), piece.outputs]
    for place, slots in enumerate(reads):
        for slot in slots:
            for one in (slot, *(slot if isinstance(slot, tuple) else ())):
                uses.last[one] = place
                uses.count[one] += 1
    for slot in piece.inputs:
        if isinstance(slot, tuple):
            uses.last.setdefault(slot, len(steps))
    return uses


def read_slots(step: Step | Loop) -> Sequence[Slot]:
    """What a step reads; of a loop, only what comes from outside it."""
    if isinstance(step, Loop):
        slots = [slot for piece in step.pieces for slot in piece.inputs]
        return [slot for slot in slots if slot != step.history]
    return joined_slots(step)
