"""Writes the forward method of a module. Layer: graph.

Values are called as a person would: what is computed from `x` is `x` again once the old one is no
longer needed, and what is used once stands where it is used.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from fitcompress.exporters.python.expressions import Expression, is_infix, spelled
from fitcompress.exporters.python.loops import Loop, joined_slots, relative
from fitcompress.exporters.python.members import Members
from fitcompress.exporters.python.modules import Piece, Slot, Step, results_of, slots_of
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.program import named_arguments, operation
from fitcompress.graph.shapes import Shape

__all__ = ["Body", "Hole", "Numbers"]

_SIZE = torch.ops.aten.sym_size.int
_LONGEST, _DEEPEST = 80, 3
"""Characters of a statement, and brackets in brackets, up to which it holds another one's value."""
_NAMES = ("x", "y", "z", "w")
_ROLES = {"query": "q", "key": "k", "value": "v", "attn_mask": "mask", "indices": "index"}
"""What a value is called by the argument that it is passed as."""


@dataclass(frozen=True)
class Hole:
    """A number in the text, which may become an argument of the class."""

    value: Any
    role: str
    keyword: str = ""
    default: Any = None

    @property
    def layout(self) -> Any:
        """All of it but the value."""
        return self.role, self.keyword, repr(self.default)


class Numbers:
    """Collects the numbers of a text; each is marked in it by its place."""

    def __init__(self) -> None:
        self.holes: list[Hole] = []

    def number(self, value: Any, role: str, keyword: str = "", default: Any = None) -> str:
        self.holes.append(Hole(value, role, keyword, default))
        return f"\0{len(self.holes) - 1}\1"

    def value(self, node: Node) -> Expression:
        raise AssertionError(f"'{node}' is no number")

    def shape(self, node: Node) -> Shape:
        raise AssertionError(f"'{node}' is no number")


@dataclass
class Body(Numbers):
    """The forward method of one piece."""

    piece: Piece
    members: Members
    leaves: Mapping[Node, Leaf]
    shapes: Mapping[str, Shape]
    steps: Sequence[Step | Loop]
    input_names: Sequence[str] = ()
    ending: str = "{}"
    """What is done to each output."""
    widths: Sequence[int] = ()
    """Characters of the numbers in the text, where they are known."""
    holes: list[Hole] = field(init=False, default_factory=list)
    lines: list[str] = field(init=False, default_factory=list)
    names: dict[Slot, str] = field(init=False, default_factory=dict)
    _pending: dict[Node, Expression] = field(init=False, default_factory=dict)
    _reads: dict[Node, list[Slot]] = field(init=False, default_factory=dict)
    """By pending value, the variables that its text reads."""
    _last: dict[Slot, int] = field(init=False, default_factory=dict)
    _count: dict[Slot, int] = field(init=False, default_factory=dict)
    _now: int = field(init=False, default=0)
    _used: list[Slot] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        for place, step in enumerate(self.steps):
            for slot in self._slots(step):
                self._note(slot, place)
        for value in self.piece.outputs:
            self._note(value, len(self.steps))
        for place, slot in enumerate(self.piece.inputs):
            given = self.input_names[place : place + 1]
            self.names[slot] = given[0] if given else self._fresh(slot)
            if isinstance(slot, tuple) and slot not in self._last:
                self._last[slot] = len(self.steps)

    def _slots(self, step: Step | Loop) -> list[Slot]:
        if isinstance(step, Loop):
            slots = [slot for piece in step.pieces for slot in piece.inputs]
            return [s for s in slots if s != step.history]
        return list(joined_slots(step))

    def _note(self, slot: Slot, place: int) -> None:
        nested = slot if isinstance(slot, tuple) else ()
        for one in (slot, *nested):
            self._last[one] = place
            self._count[one] = self._count.get(one, 0) + 1

    # --- what the spelling of calls asks ----------------------------------------------------

    def value(self, node: Node) -> Expression:
        if node in self._pending:
            self._used.extend(self._reads[node])
            return self._pending[node]
        if node in self.names:
            self._used.append(node)
            return Expression(self.names[node])
        assert node.op == "get_attr", node
        return Expression(self.members.access(relative(str(node.target), self.piece.path)))

    def shape(self, node: Node) -> Shape:
        return self.shapes[node.name]

    # --- statements -------------------------------------------------------------------------

    def write(self) -> list[str]:
        """The statements of the method."""
        for place, step in enumerate(self.steps):
            self._now = place
            if isinstance(step, Loop):
                self._flush()
                self._loop(step)
            elif not (isinstance(step, Node) and step in self.names):  # taken apart already
                self._statement(step)
        self._now = len(self.steps)
        results = self.piece.outputs
        if any(value not in results for value in self._pending) or len(results) > 1:
            self._flush()
        texts = [self.ending.format(self.value(value).text) for value in results]
        self.lines.append(f"return {', '.join(texts)}")
        return self.lines

    def _statement(self, step: Step) -> None:
        if any(value not in self._slots_flat(step) for value in self._pending):
            self._flush()
        start = len(self.holes)
        expression, used = self._expression(step)
        parts = self._parts(step)
        if self._pending and self._is_too_much(expression.text, len(parts or ()) * 4):
            del self.holes[start:]
            self._flush()
            expression, used = self._expression(step)
        self._pending.clear()
        results = results_of(step)
        if parts is not None:
            names = self._letters(step, parts)
            target = ", ".join(names) if len(names) > 1 else f"({names[0]},)"
            self.lines.append(f"{target} = {expression.text}")
        elif len(results) > 1:
            self._release(used)
            for value in results:
                self.names[value] = self._fresh(value)
            self.lines.append(f"{', '.join(self.names[v] for v in results)} = {expression.text}")
        elif self._count.get(results[0], 0) == 1 and self._is_next(results[0], expression):
            self._pending[results[0]] = expression
            self._reads[results[0]] = used
        else:
            self._assign(results[0], expression, used)

    def _is_too_much(self, text: str, more: int) -> bool:
        """Whether a statement is hard to read, with so many characters more than the text."""
        widths = dict(enumerate(self.widths))
        plain = re.sub("\0(\\d+)\1", lambda mark: "9" * widths.get(int(mark[1]), 2), text)
        return len(plain) + more > _LONGEST or _depth(plain) > _DEEPEST or plain.startswith("(")

    def _slots_flat(self, step: Step) -> set[Node]:
        nodes: set[Node] = set()
        for slot in slots_of(step):
            nodes.update(slot if isinstance(slot, tuple) else (slot,))
        return nodes

    def _is_next(self, value: Node, expression: Expression) -> bool:
        """Whether the value can stand in the next statement instead of one of its own."""
        place, step = self._now + 1, self.steps[self._now]
        if expression.text.count("=") > 1:
            return False
        if place == len(self.steps):
            return len(self.piece.outputs) == 1
        following = self.steps[place]
        if isinstance(following, Loop) or self._last[value] != place:
            return False
        is_chain = isinstance(step, Piece) and step.numbers is not None
        return not is_chain or (isinstance(following, Node) and is_infix(following))

    def _flush(self) -> None:
        """Gives what is pending names, before the step of now takes anything."""
        self._now -= 1
        for value, expression in list(self._pending.items()):
            del self._pending[value]
            self._assign(value, expression, self._reads[value])
        self._now += 1

    def _assign(self, value: Node, expression: Expression, used: Sequence[Slot]) -> None:
        name = self._successor(value, used)
        self.names[value] = name
        if expression.text != name:
            self.lines.append(f"{name} = {expression.text}")

    def _expression(self, step: Step) -> tuple[Expression, list[Slot]]:
        self._used = []
        if isinstance(step, Piece):
            path = relative(step.path, self.piece.path)
            inside = ", ".join(self._slot(slot) for slot in step.inputs)
            return Expression(f"{self.members.access(path)}({inside})"), self._used
        if step in self.leaves:
            leaf = self.leaves[step]
            path = relative(leaf.path, self.piece.path)
            text = f"{self.members.access(path)}({self.value(leaf.source).text})"
            return Expression(text), self._used
        listed = joined_slots(step)[:1]
        if listed and isinstance(listed[0], tuple) and listed[0] in self.names:
            return self._joined(step, listed[0]), self._used
        return spelled(step, self), self._used

    def _joined(self, step: Node, values: tuple[Node, ...]) -> Expression:
        """A call that joins a list that has a name."""
        self._used.append(values)
        dim = named_arguments(step)["dim"]
        given = "" if dim == 0 else f", dim={self.number(dim, 'dim')}"
        return Expression(f"torch.{operation(step)}({self.names[values]}{given})")

    def _slot(self, slot: Slot) -> str:
        if not isinstance(slot, tuple):
            return self.value(slot).text
        if slot in self.names:
            self._used.append(slot)
            return self.names[slot]
        return f"[{', '.join(self.value(value).text for value in slot)}]"

    def _loop(self, loop: Loop) -> None:
        self._used = []
        first = loop.pieces[0]
        path = loop.holder or relative(first.path, self.piece.path).rstrip("0123456789")
        item = path.rpartition(".")[2].rstrip("_")
        item = item.removesuffix("s") if item.isidentifier() and item != "s" else "layer"
        start = first.inputs[loop.carried]
        if isinstance(start, tuple):
            inside = self._slot(start)
            self._release(self._used)
            name = self.names[start] if start in self.names else self._fresh(start)
            if start not in self.names:
                self.lines.append(f"{name} = {inside}")
        else:
            inside = self._slot(start)
            name = self._successor(loop.history, self._used)  # type: ignore[arg-type]
            if name != inside:
                self.lines.append(f"{name} = {inside}")
        others = [name if i == loop.carried else self._slot(s) for i, s in enumerate(first.inputs)]
        over = self.members.access(loop.holder) if loop.holder else "self.children()"
        call = f"{item}({', '.join(others)})"
        self.lines.append(f"for {item} in {over}:")
        self.lines.append(f"    {name}.append({call})" if loop.grows else f"    {name} = {call}")
        self.names[loop.history] = name

    # --- names ------------------------------------------------------------------------------

    def _is_live(self, slot: Slot) -> bool:
        return self._last.get(slot, -1) > self._now

    def _release(self, used: Sequence[Slot]) -> None:
        """Forgets the names of what was read for the last time."""
        for slot in used:
            if slot in self.names and not self._is_live(slot):
                del self.names[slot]

    def _successor(self, value: Node, used: Sequence[Slot]) -> str:
        """The name of a value that is computed from others: that of the first of them that is not
        needed any more, if it is a tensor too."""
        ended = [s for s in used if s in self.names and not self._is_live(s)]
        kept = [s for s in ended if self._is_plain(s) and not self._called(value)]
        name = self.names[kept[0]] if kept and self._is_tensor(value) else ""
        self._release(ended)
        return name or self._fresh(value)

    def _is_plain(self, slot: Slot) -> bool:
        """Whether the slot is a tensor whose name says nothing of what it is."""
        if isinstance(slot, tuple) or not self._is_tensor(slot):
            return False
        return self.names[slot].rstrip("0123456789") in _NAMES

    def _is_tensor(self, node: Node) -> bool:
        return isinstance(self.shapes[node.name], tuple)

    def _fresh(self, slot: Slot) -> str:
        """A name that nothing has that is still needed."""
        taken = {name for one, name in self.names.items() if self._is_live(one)}
        taken |= {self.names[s] for s in self.piece.inputs if s in self.names and self._now == 0}
        if isinstance(slot, tuple):
            wanted = ["parts"]
        elif not self._is_tensor(slot):
            wanted = ["batch" if slot.target == _SIZE and slot.args[1] == 0 else "size"]
        else:
            wanted = [*self._called(slot), *_NAMES]
        counted = (f"{wanted[-1] if len(wanted) == 1 else 'x'}{n}" for n in range(2, 1000))
        return next(name for name in (*wanted, *counted) if name not in taken)

    def _called(self, node: Node) -> list[str]:
        """What the value is, by its own name or by the first argument that says so."""
        if node.op == "get_attr":
            name = str(node.target).rpartition(".")[2]
            return [name] if name.isidentifier() else []
        for user in node.users:
            if operation(user) and user not in self.leaves:
                for name, value in named_arguments(user).items():
                    if value is node and name in _ROLES:
                        return [_ROLES[name]]
        return []

    def _parts(self, step: Step) -> list[Node | None] | None:
        """The results of a call that gives several, if all that is done is to take them apart."""
        if isinstance(step, Piece) or step in self.leaves:
            return None
        shape = self.shapes[step.name]
        if not isinstance(shape, tuple) or not shape or not isinstance(shape[0], tuple):
            return None
        parts: list[Node | None] = [None] * len(shape)
        own = set(self.steps)
        for user in step.users:
            place = _item(user)
            if user not in own or place is None or parts[place] is not None:
                return None
            parts[place] = user
        return parts

    def _letters(self, step: Step, parts: Sequence[Node | None]) -> list[str]:
        """A name for each part: the letters of the layer that it comes from, where that has as
        many; an underscore for what nobody reads."""
        source, word = step, ""
        for _ in range(5):
            if isinstance(source, Piece) or not source.args:
                break
            if source in self.leaves:
                word = self.leaves[source].path.rpartition(".")[2]
                break
            first = source.args[0]
            source = first if isinstance(first, Node) else step
        is_spelled = word.isalpha() and len(set(word)) == len(word) == len(parts)
        names: list[str] = []
        for place, part in enumerate(parts):
            if part is None:
                names.append("_")
                continue
            self.names[part] = word[place] if is_spelled else self._fresh(part)
            names.append(self.names[part])
        return names


def _depth(text: str) -> int:
    """How many brackets stand in one another."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        deepest = max(deepest, depth)
    return deepest


def _item(node: Node) -> int | None:
    """Which of the parts of a value the node takes, if it does."""
    place = node.args[1] if node.target is operator.getitem else None
    return place if isinstance(place, int) else None
