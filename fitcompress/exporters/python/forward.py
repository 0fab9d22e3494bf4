"""Writes the forward method of a module.

Each step is spelled once, with its operands left open. Statements then take the steps together: a
value that is used once is written where it is used, as long as the statement stays readable.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch.fx import Node

from fitcompress.exporters.python.code import Code, Number, Ref, code, joined
from fitcompress.exporters.python.expressions import Expression, is_infix, spelled
from fitcompress.exporters.python.loops import Loop, relative
from fitcompress.exporters.python.members import Members
from fitcompress.exporters.python.modules import Piece, Slot, Step, results_of, slots_of
from fitcompress.exporters.python.uses import Uses, find_uses
from fitcompress.exporters.python.variables import Variables
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.shapes import Shape

__all__ = ["Forward"]

_LONGEST, _DEEPEST = 80, 3
"""Characters and nested brackets up to which a statement contains the value of another one."""


@dataclass(frozen=True)
class Forward:
    """The forward method of one piece."""

    piece: Piece
    members: Members
    leaves: Mapping[Node, Leaf]
    shapes: Mapping[str, Shape]
    steps: Sequence[Step | Loop]
    wanted_names: Sequence[str] = ()
    """Of the inputs; empty leaves the choice to `variables`."""
    ending: str = "{}"
    """Wraps each output, which stands in the braces."""

    @property
    def input_names(self) -> tuple[str, ...]:
        names = self.variables().names
        return tuple(names[slot] for slot in self.piece.inputs)

    def statements(self, texts: Mapping[Number, str] | None = None) -> list[Code]:
        """The lines of the method.

        texts: of the numbers, once they are known; they count for the length of a statement.
        """
        return _Emitter(self, self.variables(), texts or {}).run()

    def variables(self) -> Variables:
        """The variables before the first statement."""
        return Variables(self.piece.inputs, self.wanted_names, self.uses, self.shapes, self.leaves)

    @cached_property
    def uses(self) -> Uses:
        return find_uses(self.piece, self.steps)

    @cached_property
    def templates(self) -> dict[Step, Expression]:
        """Every step, with its operands open."""
        return {step: self._template(step) for step in self.steps if not isinstance(step, Loop)}

    def _template(self, step: Step) -> Expression:
        if isinstance(step, Piece):
            path, inputs = step.path, step.inputs
        elif step in self.leaves:
            path, inputs = self.leaves[step].path, (self.leaves[step].source,)
        else:
            return spelled(step, self.shapes)
        given = joined(", ", [Code((Ref(slot),)) for slot in inputs])
        return Expression(code(f"{self.access(path)}(", given, ")"))

    def access(self, path: str) -> str:
        """The expression for a module or a tensor by its path in the whole network."""
        return self.members.access(relative(path, self.piece.path))


@dataclass(frozen=True)
class _Pending:
    """A value without a name: its expression goes into the next statement."""

    expression: Expression
    read: Sequence[Slot]
    """The variables in the expression."""


@dataclass
class _Emitter:
    forward: Forward
    variables: Variables
    texts: Mapping[Number, str]
    lines: list[Code] = field(default_factory=list)
    pending: dict[Node, _Pending] = field(default_factory=dict)

    def run(self) -> list[Code]:
        steps, results = self.forward.steps, self.forward.piece.outputs
        for place, step in enumerate(steps):
            if isinstance(step, Loop):
                self.flush(place)
                self.loop(step, place)
            elif step not in self.variables.names:  # a result taken apart has its name already
                self.statement(step, place)
        if len(results) > 1 or not self.pending.keys() <= {*results}:
            self.flush(len(steps))
        returned = [self.written(value).code.within(self.forward.ending) for value in results]
        return [*self.lines, code("return ", joined(", ", returned))]

    def statement(self, step: Step, place: int) -> None:
        parts = self.parts(step)
        if not self.pending.keys() <= _operands(step) or (
            self.pending and self.is_too_much(self.resolved(step), len(parts or ()) * 4)
        ):
            self.flush(place)
        expression = self.resolved(step)
        read = self.read_by(self.forward.templates[step].code)
        self.pending.clear()
        results = results_of(step)
        if parts is not None:
            names = self.variables.name_parts(results[0], parts, place)
            self.set(", ".join(names) if len(names) > 1 else f"({names[0]},)", expression.code)
        elif len(results) > 1:
            self.variables.release(read, place)
            for value in results:
                self.variables.names[value] = self.variables.fresh(value, place)
            self.set(", ".join(self.variables.names[v] for v in results), expression.code)
        elif self.is_inlined(results[0], expression, place):
            self.pending[results[0]] = _Pending(expression, read)
        else:
            self.assign(results[0], _Pending(expression, read), place)

    def parts(self, step: Step) -> list[Node | None] | None:
        """The results of a call that gives several, if the piece only takes them apart."""
        if isinstance(step, Piece) or step in self.forward.leaves:
            return None
        shape = self.forward.shapes[step.name]
        if not isinstance(shape, tuple) or not shape or not isinstance(shape[0], tuple):
            return None
        parts: list[Node | None] = [None] * len(shape)
        own = set(self.forward.steps)
        for user in step.users:
            place = user.args[1] if user.target is operator.getitem else None
            if user not in own or not isinstance(place, int) or parts[place] is not None:
                return None
            parts[place] = user
        return parts

    def is_too_much(self, expression: Expression, extra: int) -> bool:
        """Whether a statement is hard to read.

        extra: characters on the left side of the assignment.
        """
        text = expression.code.filled(lambda number: "9" * len(self.texts.get(number, "99")))
        return len(text) + extra > _LONGEST or _depth(text) > _DEEPEST or text.startswith("(")

    def is_inlined(self, value: Node, expression: Expression, place: int) -> bool:
        """Whether the next statement contains the value, instead of a statement of its own."""
        step, uses = self.forward.steps[place], self.forward.uses
        if uses.count[value] != 1 or expression.code.sketch.count("=") > 1:
            return False
        if place + 1 == len(self.forward.steps):
            return len(self.forward.piece.outputs) == 1
        following = self.forward.steps[place + 1]
        if isinstance(following, Loop) or uses.last[value] != place + 1:
            return False
        is_chain = isinstance(step, Piece) and step.numbers is not None
        return not is_chain or (isinstance(following, Node) and is_infix(following))

    def flush(self, place: int) -> None:
        """Names all pending values in statements before the step at `place`."""
        for value, pending in list(self.pending.items()):
            del self.pending[value]
            self.assign(value, pending, place - 1)

    def assign(self, value: Node, pending: _Pending, place: int) -> None:
        name = self.variables.successor(value, pending.read, place)
        self.variables.names[value] = name
        if pending.expression.code != code(name):
            self.set(name, pending.expression.code)

    def set(self, target: str, text: Code) -> None:
        self.lines.append(code(f"{target} = ", text))

    def loop(self, loop: Loop, place: int) -> None:
        first, variables = loop.pieces[0], self.variables
        start = first.inputs[loop.carried]
        text, read = self.written(start).code, self.read_by(Code((Ref(start),)))
        if loop.grows:
            variables.release(read, place)
            name = variables.names.get(start) or variables.fresh(start, place)
            is_new = start not in variables.names
        else:
            name = variables.successor(loop.history, read, place)
            is_new = text != code(name)
        if is_new:
            self.set(name, text)
        item = self.item_name(loop)
        others = [None if n == loop.carried else slot for n, slot in enumerate(first.inputs)]
        given = [self.written(slot).code if slot else code(name) for slot in others]
        call = code(f"{item}(", joined(", ", given), ")")
        over = self.forward.members.access(loop.holder) if loop.holder else "self.children()"
        step = f"{name}.append({{}})" if loop.grows else f"{name} = {{}}"
        self.lines += [code(f"for {item} in {over}:"), code("    ", call.within(step))]
        variables.names[loop.history] = name

    def item_name(self, loop: Loop) -> str:
        """The variable of a loop: `block` for modules in `blocks`."""
        first = relative(loop.pieces[0].path, self.forward.piece.path).rstrip("0123456789")
        item = (loop.holder or first).rpartition(".")[2].rstrip("_")
        return item.removesuffix("s") if item.isidentifier() and item != "s" else "layer"

    # --- operands ---------------------------------------------------------------------------

    def resolved(self, step: Step) -> Expression:
        """The expression of a step, with its operands written out."""
        template = self.forward.templates[step]
        match template.code.parts:
            case (Ref(slot),):
                return self.written(slot)
        return Expression(template.code.resolved(self.operand), template.is_loose)

    def operand(self, ref: Ref) -> Code:
        expression = self.written(ref.slot)
        is_bracketed = ref.is_tight and expression.is_loose
        return code("(", expression.code, ")") if is_bracketed else expression.code

    def written(self, slot: Slot) -> Expression:
        """A value under its name, or as the expression that computes it."""
        if slot in self.variables.names:
            return Expression(code(self.variables.names[slot]))
        if isinstance(slot, tuple):
            values = joined(", ", [self.written(value).code for value in slot])
            return Expression(code("[", values, "]"))
        if slot in self.pending:
            return self.pending[slot].expression
        assert slot.op == "get_attr", slot
        return Expression(code(self.forward.access(str(slot.target))))

    def read_by(self, text: Code) -> list[Slot]:
        """The variables that a text with open operands reads."""
        read: list[Slot] = []
        # Arguments come first: the result of `x.expand_as(y)` takes the name `y` if both are free.
        for slot in (ref.slot for ref in sorted(text.refs, key=lambda ref: ref.is_subject)):
            if slot in self.variables.names:
                read.append(slot)
            elif isinstance(slot, tuple):
                read += self.read_by(Code(tuple(map(Ref, slot))))
            elif slot in self.pending:
                read += self.pending[slot].read
        return read


def _operands(step: Step) -> set[Node]:
    slots = (slot if isinstance(slot, tuple) else (slot,) for slot in slots_of(step))
    return {node for nodes in slots for node in nodes}


def _depth(text: str) -> int:
    """How deeply brackets are nested."""
    depth = deepest = 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        deepest = max(deepest, depth)
    return deepest
