"""Writes a program as the text of a stand-alone PyTorch module.

    program -> readable program (`simplify`) -> pieces (`modules`) -> drafts of their code
        (`drafts`, `forward`) -> classes (`classes`) with arguments (`arguments`) -> text

Nothing here is specific to a family of networks: everything comes from the graph and its names.
"""

from __future__ import annotations

import keyword
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor
from torch.fx import Node

from fitcompress.exporters.python.arguments import choose_arguments
from fitcompress.exporters.python.class_names import class_names
from fitcompress.exporters.python.classes import (
    Argument,
    ClassCode,
    Draft,
    merge,
    merged_numbers,
)
from fitcompress.exporters.python.code import Number
from fitcompress.exporters.python.drafts import Drafter
from fitcompress.exporters.python.file_template import FileParts, file_text
from fitcompress.exporters.python.modules import Piece, Slot, find_pieces
from fitcompress.exporters.python.simplify import simplify
from fitcompress.exporters.python.wrap import WIDTH, broken
from fitcompress.graph.program import Program
from fitcompress.interface import Interface

__all__ = ["ModuleSource", "write_source"]

_ENDINGS = {
    "": "{}",
    "softmax": "functional.softmax({}, dim=-1)",
    "log_softmax": "functional.log_softmax({}, dim=-1)",
    "sigmoid": "torch.sigmoid({})",
}
"""Wraps the outputs, by the activation of the interface."""
_MOST_PATHS = 4
"""At most this many modules are named one by one in a docstring."""


@dataclass(frozen=True)
class ModuleSource:
    """A network as Python, and the tensors that it loads."""

    text: str
    """A file that imports only torch and reads `model.safetensors` beside it."""
    tensors: dict[str, Tensor]
    """By name in the module's `state_dict`; more than the program has if several modules read the
    same table.
    """


def write_source(program: Program, interface: Interface) -> ModuleSource:
    """The program as a module that ends in the activation of the interface. Nothing is modified."""
    plain = simplify(program)
    root, leaves = find_pieces(plain)
    drafter = Drafter(plain, leaves)
    names = [_identifier(info.name) for info in plain.inputs]
    if root.numbers is not None:
        names = ["x"]
    drafter.draft(root, names, _ENDINGS[interface.activation])
    codes = _class_codes(drafter.drafts)
    texts = [_class_text(code, drafter, names if code is codes[-1] else ()) for code in codes]
    file = FileParts(interface, plain, names, class_name=codes[-1].name)
    return ModuleSource(file_text(file, texts), plain.tensors)


def _identifier(name: str) -> str:
    plain = re.sub(r"\W", "_", name)
    return plain if plain.isidentifier() and not keyword.iskeyword(plain) else f"x_{plain}"


def _class_codes(drafts: Sequence[Draft]) -> list[ClassCode]:
    """The classes, inner ones first, with the arguments of each module."""
    ordered = sorted(drafts, key=lambda draft: draft.number)
    groups = [list(group) for _, group in groupby(ordered, key=lambda draft: draft.number)]
    names = class_names(groups)
    codes = [ClassCode(name, group) for name, group in zip(names, groups, strict=True)]
    for code in codes:
        _write_code(code, codes)
    return codes


def _write_code(code: ClassCode, codes: Sequence[ClassCode]) -> None:
    """Writes a class, and the arguments of its modules, once inner classes are written."""
    drafts = code.drafts
    first = drafts[0]
    entries = []
    for place, (statement, _) in enumerate(first.entries):
        contents = [draft.entries[place][1] for draft in drafts]
        entries.append(merge(contents, codes.__getitem__).within(statement))
    outside = [number for entry in entries for number in entry.open_numbers]
    inside = [replace(n, in_body=True) for n in merged_numbers(draft.body for draft in drafts)]
    numbers = [*outside, *inside]
    attends = any(word in first.body.sketch for word in ("softmax", "attention"))
    code.arguments, choices = choose_arguments(numbers, base="heads" if attends else "width")
    pairs = zip(numbers, choices, strict=True)
    texts = {number: choice.spelled(number) for number, choice in pairs}
    code.entries = [entry.filled(texts.__getitem__) for entry in entries]
    own = zip(first.body.open_numbers, inside, strict=True)
    code.body = _body(first, {open_number: texts[number] for open_number, number in own})
    for argument in code.arguments:
        for draft, value in zip(drafts, argument.number.values, strict=True):
            draft.arguments[argument.name] = value


def _body(draft: Draft, texts: Mapping[Number, str]) -> list[str]:
    lines = draft.forward.statements(texts) if draft.forward else [draft.body]
    return [line.filled(texts.__getitem__) for line in lines if line.parts]


# --- text -----------------------------------------------------------------------------------


def _class_text(code: ClassCode, drafter: Drafter, input_names: Sequence[str]) -> str:
    """The class as Python."""
    piece = code.drafts[0].piece
    base = "nn.Sequential" if piece.numbers is not None else _base(code)
    lines = [f"class {code.name}({base}):", *_docstring(code, drafter)]
    stored = [f"self.{a.name} = {a.name}" for a in code.arguments if a.is_stored]
    start = [] if piece.numbers is not None else ["super().__init__()"]
    given = "".join(f", {a.name}: {_kind(a)}" for a in code.arguments)
    lines += ["", *_method(f"def __init__(self{given}) -> None:", [*start, *stored, *code.entries])]
    if code.body:
        lines += [
            "",
            *_method(_signature(piece, drafter, input_names, code), code.body),
        ]
    return "\n".join(lines)


def _base(code: ClassCode) -> str:
    is_mapping = any(entry.startswith('self["') for entry in code.entries)
    return "nn.ModuleDict" if is_mapping else "nn.Module"


def _method(head: str, statements: Sequence[str]) -> list[str]:
    inner = [line for text in statements for line in broken(f"        {text}")]
    return [*broken(f"    {head}"), *inner]


def _docstring(code: ClassCode, drafter: Drafter) -> list[str]:
    """Lists the modules of the class, and the shapes of their inputs and outputs."""
    pieces = [draft.piece for draft in code.drafts]
    shapes = list(dict.fromkeys(_shape_text(piece, drafter) for piece in pieces))
    made = f"{'the first: ' if len(shapes) > 1 else ''}{shapes[0]}"
    paths = [f"`{piece.path}`" for piece in pieces]
    places = " and ".join(filter(None, (", ".join(paths[:-1]), paths[-1])))
    if len(paths) > _MOST_PATHS or len(places) > WIDTH // 2:
        places = f"{paths[0]} to {paths[-1]} ({len(paths)} modules)"
    places = f"{places}: " if pieces[0].path else ""
    whole = f'    """{places}{made}."""'
    if len(whole) <= WIDTH:
        return [whole]
    made = f"{made[0].upper()}{made[1:]}"
    words = [f'"""{places.removesuffix(": ") or "The whole network"}.', "", f"{made}.", '"""']
    filled = (textwrap.wrap(text, WIDTH - 4, break_on_hyphens=False) or [""] for text in words)
    return [f"    {line}".rstrip() for lines in filled for line in lines]


def _shape_text(piece: Piece, drafter: Drafter) -> str:
    sides = (", ".join(map(drafter.shape_text, side)) for side in (piece.inputs, piece.outputs))
    return " -> ".join(side or "nothing" for side in sides)


def _kind(argument: Argument) -> str:
    value = argument.number.values[0]
    if isinstance(value, tuple):
        return "Sequence[int]"
    return type(value).__name__


def _signature(piece: Piece, drafter: Drafter, input_names: Sequence[str], code: ClassCode) -> str:
    names = input_names or code.drafts[0].input_names
    given = "".join(
        f", {name}: {_slot_kind(slot, drafter)}"
        for name, slot in zip(names, piece.inputs, strict=True)
    )
    result = "Tensor" if len(piece.outputs) == 1 else "tuple[Tensor, ...]"
    return f"def forward(self{given}) -> {result}:"


def _slot_kind(slot: Slot, drafter: Drafter) -> str:
    if not isinstance(slot, Node):
        return "list[Tensor]"
    shape = drafter.shapes[slot.name]
    if not isinstance(shape, tuple):
        return "int"
    return "tuple[Tensor, ...]" if shape and isinstance(shape[0], tuple) else "Tensor"
