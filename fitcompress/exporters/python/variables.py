"""Names of local variables in a forward method.

What is computed from `x` is `x` again once the old value is no longer needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch.fx import Node

from fitcompress.exporters.python.modules import Slot
from fitcompress.exporters.python.uses import Uses
from fitcompress.graph.leaves import Leaf
from fitcompress.graph.program import named_arguments, operation
from fitcompress.graph.shapes import Shape

__all__ = ["Variables"]

_SIZE = torch.ops.aten.sym_size.int
_PLAIN_NAMES = ("x", "y", "z", "w")
_ROLES = {"query": "q", "key": "k", "value": "v", "attn_mask": "mask", "indices": "index"}
"""Names of values by the argument that they are passed as."""


class Variables:
    """The values that have names, while the statements are written one after the other."""

    def __init__(
        self,
        inputs: Sequence[Slot],
        input_names: Sequence[str],
        uses: Uses,
        shapes: Mapping[str, Shape],
        leaves: Mapping[Node, Leaf],
    ) -> None:
        """input_names: empty leaves the choice to the allocator."""
        self.inputs = inputs
        self.uses = uses
        self.shapes = shapes
        self.leaves = leaves
        self.names: dict[Slot, str] = {}
        for place, slot in enumerate(inputs):
            given = input_names[place : place + 1]
            self.names[slot] = given[0] if given else self.fresh(slot, 0)

    def release(self, slots: Sequence[Slot], step: int) -> None:
        """Drops the names of values that no later step reads."""
        for slot in slots:
            if slot in self.names and not self.uses.is_live(slot, step):
                del self.names[slot]

    def successor(self, value: Slot, read: Sequence[Slot], step: int) -> str:
        """A name for a value computed in a step: that of the first tensor it reads whose name is
        free from then on, or a fresh one.
        """
        ended = [s for s in read if s in self.names and not self.uses.is_live(s, step)]
        is_nameless = self._is_tensor(value) and not self._roles(value)
        kept = [self.names[s] for s in ended if is_nameless and self._is_plain(s)]
        self.release(ended, step)
        return kept[0] if kept else self.fresh(value, step)

    def fresh(self, slot: Slot, step: int) -> str:
        """A name that no value read after the step has."""
        taken = {name for one, name in self.names.items() if self.uses.is_live(one, step)}
        if step == 0:
            taken |= {self.names[one] for one in self.inputs if one in self.names}
        if isinstance(slot, tuple):
            wanted = ["parts"]
        elif not self._is_tensor(slot):
            wanted = ["batch" if slot.target == _SIZE and slot.args[1] == 0 else "size"]
        else:
            wanted = [*self._roles(slot), *_PLAIN_NAMES]
        counted = (f"{wanted[-1] if len(wanted) == 1 else 'x'}{n}" for n in range(2, 1000))
        return next(name for name in (*wanted, *counted) if name not in taken)

    def name_parts(self, step: Node, parts: Sequence[Node | None], place: int) -> list[str]:
        """Names the results of a call that gives several: the letters of the layer they come from
        ("qkv") if it has as many, an underscore for results that nothing reads.
        """
        word = self._layer_name(step)
        is_spelled = word.isalpha() and len(set(word)) == len(word) == len(parts)
        names: list[str] = []
        for number, part in enumerate(parts):
            if part is None:
                names.append("_")
                continue
            self.names[part] = word[number] if is_spelled else self.fresh(part, place)
            names.append(self.names[part])
        return names

    def _layer_name(self, step: Node) -> str:
        """The last part of the path of the layer that a value is computed from."""
        source: object = step
        for _ in range(5):
            if not isinstance(source, Node) or not source.args:
                break
            if source in self.leaves:
                return self.leaves[source].path.rpartition(".")[2]
            source = source.args[0]
        return ""

    def _is_plain(self, slot: Slot) -> bool:
        """Whether the slot is a tensor whose name does not tell what it is."""
        return self._is_tensor(slot) and self.names[slot].rstrip("0123456789") in _PLAIN_NAMES

    def _is_tensor(self, slot: Slot) -> bool:
        return isinstance(slot, Node) and isinstance(self.shapes[slot.name], tuple)

    def _roles(self, slot: Slot) -> list[str]:
        """What the value is, by its own name or by the first argument that it is passed as."""
        if not isinstance(slot, Node):
            return []
        if slot.op == "get_attr":
            name = str(slot.target).rpartition(".")[2]
            return [name] if name.isidentifier() else []
        for user in slot.users:
            if operation(user) and user not in self.leaves:
                for name, value in named_arguments(user).items():
                    if value is slot and name in _ROLES:
                        return [_ROLES[name]]
        return []
