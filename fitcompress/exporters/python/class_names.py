"""Names classes after the paths of their modules."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from fitcompress.exporters.python.classes import Draft

__all__ = ["class_names"]

_RESERVED = {"Tensor", "Path", "Sequence"}


def class_names(groups: Sequence[Sequence[Draft]]) -> list[str]:
    """A name for each class: the most common name of its modules. Classes with the same name are
    told apart by a part that the others lack: `BlockWithDownsample`.
    """
    wanted = [_wanted(draft.piece.path for draft in group) for group in groups]
    traits = [_traits(group[0]) for group in groups]
    names: list[str] = []
    for number, name in enumerate(wanted):
        rivals = [traits[i] for i, other in enumerate(wanted) if other == name and i != number]
        own = [t for t in traits[number] if not any(t in rival for rival in rivals)]
        candidates = [name]
        if rivals:
            last = re.findall(r"\d+", groups[number][0].piece.path)[-1:]
            candidates = [f"{name}{n}" for n in last if len(groups[number]) == 1] or candidates
            candidates = [
                f"{name}With{trait.removeprefix(name)}" for trait in own[:1]
            ] or candidates
        counted = (f"{name}{count}" for count in range(2, 1000))
        names.append(next(n for n in (*candidates, *counted) if n not in (*names, *_RESERVED)))
    return names


def _wanted(paths: Iterable[str]) -> str:
    counts = Counter(_name(path) for path in paths)
    return counts.most_common(1)[0][0]


def _name(path: str) -> str:
    """`Block` for `blocks.3`, `LayerBlock` for `layer1.0`, `Attn` for `blocks.3.attn`."""
    if not path:
        return "Student"
    parts = path.split(".")
    words = [part for part in parts if not part.isdigit()]
    word = words[-1] if words else "block"
    if parts[-1].isdigit():
        word = word[:-1] if word.endswith("s") and len(word) > 2 else f"{word}_block"
    camel = "".join(part.capitalize() for part in re.split(r"[\W\d_]+", word))
    return camel or "Part"


def _traits(draft: Draft) -> list[str]:
    """Names of what a class holds, takes and calls, capitalized."""
    entries = " ".join(text for text, _ in draft.entries)
    found = re.findall(r'self\.(?:register_buffer\(")?(\w+)', entries)
    found += [*draft.input_names, *re.findall(r"\.(\w+)\(", draft.body.sketch)]
    words = ("".join(p.capitalize() for p in re.split(r"[\W\d_]+", word)) for word in found)
    return [word for word in dict.fromkeys(words) if word not in ("", "X", "Y")]
