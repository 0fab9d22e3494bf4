"""Finds modules of the same class that a loop can call one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch.fx import Node

from fitcompress.exporters.python.members import Members
from fitcompress.exporters.python.modules import Piece, Slot, Step, slots_of
from fitcompress.graph.program import named_arguments, operation

__all__ = ["Loop", "find_loops", "joined_slots", "relative"]


@dataclass(frozen=True, eq=False)
class Loop:
    """Modules of the same class that are called one after the other."""

    pieces: tuple[Piece, ...]
    holder: str
    """Path of the list that holds them; empty if the module holds nothing else."""
    carried: int
    """Place of the input that is the previous result, or a list of all results so far."""

    @property
    def grows(self) -> bool:
        return isinstance(self.pieces[0].inputs[self.carried], tuple)

    @property
    def history(self) -> Slot:
        """The carried input after the last call."""
        results = tuple(piece.outputs[0] for piece in self.pieces)
        first = self.pieces[0].inputs[self.carried]
        return (*first, *results) if isinstance(first, tuple) else results[-1]


def find_loops(
    piece: Piece, members: Members, class_of: Callable[[Piece], Any]
) -> list[Step | Loop]:
    """The steps of a piece, with calls that a loop can make as one `Loop`."""
    found: list[Step | Loop] = []
    run: list[Piece] = []
    for step in (*piece.steps, None):
        own = step if isinstance(step, Piece) and step.numbers is None else None
        if run and (own is None or class_of(own) != class_of(run[-1])):
            found.extend(_rolled(piece, run, members))
            run = []
        if own is not None:
            run.append(own)
        elif step is not None:
            found.append(step)
    return found


def _rolled(piece: Piece, run: list[Piece], members: Members) -> Sequence[Step | Loop]:
    holder = _holder(piece, run, members)
    if len(run) < 2 or holder is None:
        return run
    for carried in range(len(run[0].inputs)):
        loop = Loop(tuple(run), holder, carried)
        if _is_loop(loop, piece):
            return [loop]
    return run


def _holder(piece: Piece, run: Sequence[Piece], members: Members) -> str | None:
    """The path of the module that holds exactly the pieces of the run, in order."""
    paths = [relative(one.path, piece.path) for one in run]
    holder = members.find(paths[0].rpartition(".")[0])
    is_listed = holder.kind == "ModuleList" or not holder.path
    numbers = [path.rstrip("0123456789") for path in paths]
    is_counted = len(set(numbers)) == 1 and all(
        int(b[len(numbers[0]) :] or -1) - int(a[len(numbers[0]) :] or -1) == 1
        for a, b in pairwise(paths)
    )
    is_all = [part.path for part in holder.parts.values()] == paths
    return holder.path if is_listed and is_counted and is_all else None


def _is_loop(loop: Loop, piece: Piece) -> bool:
    """Whether each call takes the previous results, and otherwise the same inputs."""
    results: list[Node] = []
    first = loop.pieces[0].inputs
    for one in loop.pieces:
        if len(one.outputs) != 1 or len(one.inputs) != len(first):
            return False
        for place, slot in enumerate(one.inputs):
            start = first[place]
            wanted: Slot = start
            if place == loop.carried and results:
                wanted = (*start, *results) if isinstance(start, tuple) else results[-1]
            if slot != wanted:
                return False
        results.append(one.outputs[0])
    inside = set(loop.pieces)
    hidden = set(results if loop.grows else results[:-1])
    for step in piece.steps:
        if step not in inside:
            slots = joined_slots(step)
            if any(
                s in hidden or (isinstance(s, tuple) and s != loop.history and hidden & {*s})
                for s in slots
            ):
                return False
    return not hidden.intersection(piece.outputs)


def joined_slots(step: Step) -> tuple[Slot, ...]:
    """What a step reads; for a concatenation, its list as a whole."""
    if isinstance(step, Node) and operation(step) in ("cat", "stack"):
        return (tuple(named_arguments(step)["tensors"]),)
    return slots_of(step)


def relative(path: str, base: str) -> str:
    return path[len(base) + 1 :] if base else path
