"""Drafts the code of every module of a network, and sorts the modules into classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.fx import Node

from fitcompress.exporters.python.classes import Content, Draft, Made, Series
from fitcompress.exporters.python.code import code, joined, number
from fitcompress.exporters.python.constructors import leaf_code, module_code
from fitcompress.exporters.python.forward import Forward
from fitcompress.exporters.python.loops import Loop, find_loops
from fitcompress.exporters.python.members import Member, Members
from fitcompress.exporters.python.modules import Piece, Slot, Step, is_below, outside
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.program import Program
from fitcompress.graph.shapes import propagate_shapes

__all__ = ["Drafter"]


class Drafter:
    """Drafts pieces, inner ones first, and numbers their classes in that order."""

    def __init__(self, program: Program, leaves: Mapping[Node, Leaf]) -> None:
        self.program = program
        self.leaves = leaves
        self.shapes = propagate_shapes(program)
        self._others = propagate_shapes(program, 3)
        self.drafts: list[Draft] = []
        self._made: dict[Piece, Draft] = {}
        self._numbers: dict[Any, int] = {}

    def draft(self, piece: Piece, input_names: Sequence[str] = (), ending: str = "{}") -> Draft:
        """Drafts a piece, after the pieces in it.

        input_names: of the piece; empty leaves the choice to the allocator of names.
        ending: wraps each output, which stands in the braces.
        """
        for inner in _classes_in(piece):
            if inner not in self._made:
                self.draft(inner)
        if piece.numbers is not None:
            draft = self._as_chain(piece, ending)
        else:
            draft = self._as_class(piece, input_names, ending)
        kinds = tuple(isinstance(slot, tuple) for slot in piece.inputs)
        key = (kinds, tuple((text, c.layout) for text, c in draft.entries), draft.body.layout)
        draft.number = self._numbers.setdefault(key, len(self._numbers))
        self._made[piece] = draft
        self.drafts.append(draft)
        return draft

    def _as_chain(self, piece: Piece, ending: str) -> Draft:
        """The whole network as one `nn.Sequential`."""
        entry = ("super().__init__({})", Series("{}", self._items(piece)))
        body = code() if ending == "{}" else code(f"return {ending.format('super().forward(x)')}")
        return Draft(piece, ("x",), (entry,), body)

    def _as_class(self, piece: Piece, input_names: Sequence[str], ending: str) -> Draft:
        made = dict(self._members_of(piece))
        members = self._members(made)
        steps = find_loops(piece, members, lambda one: self._made[one].number)
        forward = Forward(piece, members, self.leaves, self.shapes, steps, input_names, ending)
        entries = tuple(self._entries(made, members, steps))
        body = joined("\n", forward.statements())
        return Draft(piece, forward.input_names, entries, body, forward)

    def shape_text(self, slot: Slot) -> str:
        """The shape of a value, with N for the batch."""
        if isinstance(slot, tuple):
            return f"[{self.shape_text(slot[0])}, ...]"
        sizes = [shapes[slot.name] for shapes in (self.shapes, self._others)]
        if not all(isinstance(size, tuple) for size in sizes) or sizes[0][:1] == ((),):
            return "..."
        if sizes[0] and isinstance(sizes[0][0], tuple):
            return "(...)"
        words = [_size_text(*pair) for pair in zip(*sizes, strict=True)]
        return f"({', '.join(words)}{',' if len(words) == 1 else ''})"

    def _members(self, made: Mapping[str, Step | str]) -> Members:
        return Members((path, isinstance(what, str)) for path, what in made.items())

    # --- what a module holds ----------------------------------------------------------------

    def _members_of(self, piece: Piece) -> Iterator[tuple[str, Step | str]]:
        """(relative path, step or tensor name) of all modules and tensors, in order of use."""
        start = len(piece.path) + 1 if piece.path else 0
        made = {step: self._made_at(step) for step in piece.steps}
        inner = tuple(f"{path}." for path in made.values() if path is not None)
        for step, path in made.items():
            if path is not None:
                yield path[start:], step
            elif isinstance(step, Node):
                for source in step.all_input_nodes:
                    name = str(source.target)
                    if not outside(source, piece.path) and not name.startswith(inner):
                        yield name[start:], name
        for name in self.program.tensors:
            if is_below(name, piece.path) and not name.startswith(inner):
                yield name[start:], name

    def _made_at(self, step: Step) -> str | None:
        """The path of the module that computes a step, if there is one."""
        if isinstance(step, Piece):
            return step.path
        return self.leaves[step].path if step in self.leaves else None

    def _entries(
        self, made: Mapping[str, Step | str], members: Members, steps: Sequence[Step | Loop]
    ) -> Iterator[tuple[str, Content]]:
        if any(isinstance(step, Loop) and not step.holder for step in steps):
            yield from self._counted(made)
            return
        for member in members.root.parts.values():
            yield from self._entry(member, members.root, made, members)

    def _counted(self, made: Mapping[str, Step | str]) -> Iterator[tuple[str, Content]]:
        """Statements for modules whose names differ only in a number at the end."""
        first = next(iter(made))
        stem = first.rstrip("0123456789")
        items = tuple(self._content(step) for step in made.values() if not isinstance(step, str))
        yield "layers = {}", Series("{}", items, as_list=True)
        yield f"for number, layer in enumerate(layers, start={first[len(stem) :]}):", code()
        yield f'    self.add_module(f"{stem}{{number}}", layer)', code()

    def _entry(
        self, member: Member, holder: Member, made: Mapping[str, Step | str], members: Members
    ) -> Iterator[tuple[str, Content]]:
        target = members.access(member.path)
        what = made.get(member.path)
        if isinstance(what, str):
            base = members.access(holder.path) if holder.path else "self"
            yield self._tensor_entry(what, target, base)
        else:
            yield f"{target} = {{}}", self._holder(member, made)
            yield from self._below(member, made, members)

    def _holder(self, member: Member, made: Mapping[str, Step | str]) -> Content:
        """The expression that creates a member, without what is set in it later."""
        what = made.get(member.path)
        if what is not None:
            assert not isinstance(what, str), what
            return self._content(what)
        if member.kind == "ModuleList":
            ordered = sorted(member.parts.values(), key=lambda part: int(part.name))
            items = tuple(self._holder(part, made) for part in ordered)
            return Series("nn.ModuleList({})", items, as_list=True)
        return code(f"nn.{member.kind}()")

    def _below(
        self, member: Member, made: Mapping[str, Step | str], members: Members
    ) -> Iterator[tuple[str, Content]]:
        """Statements that set members which their holder lacks when it is created."""
        if member.path in made:
            return
        for part in member.parts.values():
            if member.kind == "ModuleList":
                yield from self._below(part, made, members)
            else:
                yield from self._entry(part, member, made, members)

    def _tensor_entry(self, full: str, target: str, base: str) -> tuple[str, Content]:
        name = full.rpartition(".")[2]
        value = self.program.tensors[full]
        sizes = [number(size, f"{name}.size") for size in value.shape]
        dtype = "" if value.dtype is torch.float32 else f", dtype={value.dtype}"
        zeros = code("torch.zeros(", joined(", ", sizes or ["()"]), f"{dtype})")
        if full in self.program.trainable:
            text = zeros.within("nn.Parameter({})")
            if target.startswith("getattr"):
                return f'{base}.register_parameter("{name}", {{}})', text
            return f"{target} = {{}}", text
        return f'{base}.register_buffer("{name}", {{}})', zeros

    def _content(self, step: Step) -> Content:
        if isinstance(step, Piece):
            if step.numbers is None:
                return Made(self._made[step])
            return Series("nn.Sequential({})", self._items(step))
        if step not in self.leaves:
            return module_code(step)
        leaf = self.leaves[step]
        made = leaf_code(leaf, self.program.tensors[leaf.tensors[0][1]].dtype)
        is_trained = any(name in self.program.trainable for _, name in leaf.tensors)
        return made if is_trained else made.within("{}.requires_grad_(False)")

    def _items(self, chain: Piece) -> tuple[Content, ...]:
        """The modules of a chain, with `nn.Identity` for missing numbers."""
        assert chain.numbers is not None
        steps = dict(zip(chain.numbers, chain.steps, strict=True))
        nothing = code("nn.Identity()")
        return tuple(
            self._content(steps[number]) if number in steps else nothing
            for number in range(chain.numbers[-1] + 1)
        )


def _size_text(at_two: int, at_three: int) -> str:
    """A size from its values at batch sizes 2 and 3."""
    step = at_three - at_two
    if not step:
        return str(at_two)
    return ("N" if step == 1 else f"{step}N") if at_two == 2 * step else "..."


def _classes_in(piece: Piece) -> Iterator[Piece]:
    """The inner pieces that have a class, including those in chains."""
    for step in piece.steps:
        if isinstance(step, Piece):
            if step.numbers is None:
                yield step
            else:
                yield from _classes_in(step)
