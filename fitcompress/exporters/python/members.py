"""The tree of names below a module, and the expressions that reach them."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Member", "Members"]


@dataclass
class Member:
    """One name below a module."""

    path: str
    """Relative to the module; empty for the module itself."""
    is_tensor: bool = False
    parts: dict[str, Member] = field(default_factory=dict)
    """Names below it, in order of first use; empty if it is created as a whole."""

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def kind(self) -> str:
        """The class in `torch.nn` that can hold the parts."""
        if all(part.isidentifier() and not keyword.iskeyword(part) for part in self.parts):
            return "Module"
        numbers = [int(part) for part in self.parts if part.isdigit()]
        is_listed = len(numbers) == len(self.parts) and sorted(numbers) == [*range(len(numbers))]
        has_tensors = any(part.is_tensor for part in self.parts.values())
        return "ModuleList" if is_listed and self.path and not has_tensors else "ModuleDict"


class Members:
    """The tree of names below a module.

    >>> Members([("blocks.0.fc", False), ("blocks.1", False)]).access("blocks.0.fc")
    'self.blocks[0].fc'
    """

    def __init__(self, paths: Iterable[tuple[str, bool]]) -> None:
        """paths: of everything created, relative to the module, and whether it is a tensor."""
        self.root = Member("")
        for path, is_tensor in paths:
            member = self.root
            for part in path.split("."):
                below = f"{member.path}.{part}".lstrip(".")
                member = member.parts.setdefault(part, Member(below))
            member.is_tensor = is_tensor

    def access(self, path: str) -> str:
        """The expression for the module or tensor at the path."""
        member, text = self.root, "self"
        parts = path.split(".")
        for place, part in enumerate(parts):
            if part not in member.parts:  # inside a module that is created as a whole
                rest = parts[place:]
                return text + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in rest)
            text = _step(member, member.parts[part], text)
            member = member.parts[part]
        return text

    def find(self, path: str) -> Member:
        member = self.root
        for part in filter(None, path.split(".")):
            member = member.parts[part]
        return member


def _step(holder: Member, member: Member, text: str) -> str:
    name = member.name
    is_plain = name.isidentifier() and not keyword.iskeyword(name)
    if holder.kind == "ModuleList":
        return f"{text}[{name}]"
    if is_plain and (holder.kind == "Module" or member.is_tensor):
        return f"{text}.{name}"
    return f'getattr({text}, "{name}")' if member.is_tensor else f'{text}["{name}"]'
