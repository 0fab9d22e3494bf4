"""Recovers modules from a flat graph: the calls in each, its inputs and its outputs.

Each dotted path whose calls form a closed piece becomes a module. Other paths only hold modules and
tensors; their calls are written in the enclosing piece.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch.fx import Node

from fitcompress.exporters.python.constructors import has_module
from fitcompress.graph.leaves import Leaf, find_leaves
from fitcompress.graph.program import Program, named_arguments, operation, output_nodes

__all__ = ["Piece", "Slot", "Step", "find_pieces", "is_below", "outside", "results_of", "slots_of"]

_MOST_INPUTS, _MOST_OUTPUTS = 4, 3
"""What a reader can follow; the calls of a path with more are written in line."""

Slot = Node | tuple[Node, ...]
"""An input of a piece: a value, or a list of values."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A module with a forward method."""

    path: str
    """Dotted path in the whole network; empty for the network itself."""
    inputs: tuple[Slot, ...]
    outputs: tuple[Node, ...]
    steps: tuple[Step, ...]
    """Calls and inner pieces, in order."""
    numbers: tuple[int, ...] | None = None
    """Names of the steps in a chain (`nn.Sequential`); None for any other piece."""


Step = Node | Piece


def find_pieces(program: Program) -> tuple[Piece, dict[Node, Leaf]]:
    """The network as a piece, and the calls in it that become leaf modules. Nothing is modified."""
    leaves = {node: leaf for node, leaf in find_leaves(program).items() if leaf.tensors}
    finder = _Finder(program, leaves, frozenset(leaf.path for leaf in leaves.values()))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    inputs = tuple(node for node in program.graph.nodes if node.op == "placeholder")
    outputs = output_nodes(program.graph)
    if len(inputs) == len(outputs) == 1 and calls:
        chain = finder.chain("", calls)
        if chain is not None and chain.outputs == outputs and chain.inputs == inputs:
            return chain, leaves
    return Piece("", inputs, outputs, finder.steps("", calls)), leaves


def results_of(step: Step) -> tuple[Node, ...]:
    """The values that a step computes."""
    return step.outputs if isinstance(step, Piece) else (step,)


def slots_of(step: Step) -> tuple[Slot, ...]:
    """The values that a step reads, including tensors of modules."""
    return step.inputs if isinstance(step, Piece) else tuple(step.all_input_nodes)


def outside(node: Node, path: str) -> bool:
    """Whether a value is anything but a tensor of the module at the path or below it."""
    return node.op != "get_attr" or not is_below(str(node.target), path)


def is_below(name: str, path: str) -> bool:
    """Whether a name equals the path or lies below it."""
    return not path or name == path or name.startswith(f"{path}.")


@dataclass(frozen=True)
class _Finder:
    program: Program
    leaves: dict[Node, Leaf]
    leaf_paths: frozenset[str]

    def steps(self, path: str, calls: Sequence[Node]) -> tuple[Step, ...]:
        """The calls and inner pieces of a module, in order."""
        units: dict[Node, Step] = {}
        self._take_together(path, calls, calls, units)
        return tuple(_ordered(calls, units))

    def _take_together(
        self, path: str, calls: Sequence[Node], scope: Sequence[Node], units: dict[Node, Step]
    ) -> None:
        """Enters the piece of each call in `units`, if a piece below `path` contains it."""
        for child, members in self._children(path, calls).items():
            piece = self._piece(child, members)
            if piece is None or not _can_contract(members, scope, units):
                self._take_together(child, members, scope, units)
            else:
                units.update(dict.fromkeys(members, piece))

    def _children(self, path: str, calls: Iterable[Node]) -> dict[str, list[Node]]:
        """The calls below `path`, by the path of the child that contains them."""
        found: dict[str, list[Node]] = {}
        for node in calls:
            owner = self._owner(node)
            if owner != path and is_below(owner, path):
                rest = owner[len(path) + 1 :] if path else owner
                child = f"{path}.{rest.partition('.')[0]}" if path else rest.partition(".")[0]
                found.setdefault(child, []).append(node)
        return found

    def _owner(self, node: Node) -> str:
        """The path of the call's leaf module, or otherwise of the module that contains it."""
        if node in self.leaves:
            return self.leaves[node].path
        owner = str(node.meta.get("owner", ""))
        while owner and owner in self.leaf_paths:
            owner = owner.rpartition(".")[0]
        return owner

    def _piece(self, path: str, members: list[Node]) -> Piece | None:
        """The module at the path, if its calls form a closed piece with tensors."""
        names = [name for name in self.program.tensors if is_below(name, path)]
        if path in self.leaf_paths or not names:
            return None
        parts = {name[len(path) + 1 :].partition(".")[0] for name in names}
        if all(part.isdigit() for part in parts):
            return self.chain(path, members)
        is_listed = path.rpartition(".")[2].isdigit()
        if len(members) < 2 and not (is_listed and members[0] in self.leaves):
            return None
        inside = set(members)
        inputs = _inputs(members, inside, path)
        outputs = tuple(node for node in members if not inside.issuperset(node.users))
        if len(inputs) > _MOST_INPUTS or len(outputs) > _MOST_OUTPUTS:
            return None
        return Piece(path, inputs, outputs, self.steps(path, members))

    def chain(self, path: str, members: Sequence[Node]) -> Piece | None:
        """The numbered modules at the path, if each takes the output of the one before it."""
        groups = self._children(path, members)
        parts = [child.rpartition(".")[2] for child in groups]
        if sum(map(len, groups.values())) != len(members) or not all(p.isdigit() for p in parts):
            return None
        numbers = tuple(map(int, parts))
        if any(a >= b for a, b in pairwise(numbers)) or numbers[-1] >= 2 * len(numbers):
            return None
        steps = [self._element(child, group) for child, group in groups.items()]
        found = [step for step in steps if step is not None]
        if len(found) < len(steps) or not _is_chained(found, path):
            return None
        made = (isinstance(step, Piece) or step in self.leaves for step in found)
        owners = {child for child, is_made in zip(groups, made, strict=True) if is_made}
        names = (name for name in self.program.tensors if is_below(name, path))
        if any(not any(is_below(name, owner) for owner in owners) for name in names):
            return None
        first, last = _data(found[0], path), results_of(found[-1])
        return Piece(path, first, last, tuple(found), numbers)

    def _element(self, path: str, members: list[Node]) -> Step | None:
        node = members[0]
        if len(members) == 1:
            if node in self.leaves and self.leaves[node].path == path:
                return node
            if node not in self.leaves and has_module(node):
                return node
        return self._piece(path, members)


def _data(step: Step, path: str) -> tuple[Slot, ...]:
    """The arguments of a step in the chain at the path."""
    if isinstance(step, Piece):
        return step.inputs
    return tuple(node for node in step.all_input_nodes if outside(node, path))


def _is_chained(steps: Sequence[Step], path: str) -> bool:
    """Whether each step takes one value and returns one, which only the next step reads."""
    if any(len(_data(step, path)) != 1 or len(results_of(step)) != 1 for step in steps):
        return False
    for before, after in pairwise(steps):
        (value,) = results_of(before)
        readers = set(_calls([after]))
        if _data(after, path) != (value,) or not readers.issuperset(value.users):
            return False
    return not isinstance(_data(steps[0], path)[0], tuple)


def _calls(steps: Iterable[Step]) -> list[Node]:
    """All calls in the steps, including those in pieces."""
    calls: list[Node] = []
    for step in steps:
        calls.extend(_calls(step.steps) if isinstance(step, Piece) else [step])
    return calls


def _inputs(members: Sequence[Node], inside: Collection[Node], path: str) -> tuple[Slot, ...]:
    """The values from outside that the calls read, in order of first use. Values that are only
    concatenated, all of them from outside, form a list.
    """
    read: dict[Slot, None] = {}
    for node in members:
        joined = _joined(node)
        if joined and not any(item in inside or not outside(item, path) for item in joined):
            read[joined] = None
            continue
        for source in node.all_input_nodes:
            if source not in inside and outside(source, path):
                read[source] = None
    counts = Counter(one for slot in read for one in (slot if isinstance(slot, tuple) else [slot]))
    found: dict[Slot, None] = {}
    for slot in read:
        if isinstance(slot, tuple) and any(counts[one] > 1 for one in slot):
            found.update(dict.fromkeys(slot))
        else:
            found[slot] = None
    return tuple(found)


def _joined(node: Node) -> tuple[Node, ...]:
    """The values that a call concatenates or stacks; empty for other calls."""
    is_join = operation(node) in ("cat", "stack")
    return tuple(named_arguments(node)["tensors"]) if is_join else ()


def _can_contract(members: Sequence[Node], scope: Sequence[Node], units: dict[Node, Step]) -> bool:
    """Whether the calls can form one step, with no other call in between."""
    places = {node: place for place, node in enumerate(scope)}
    own = [places[node] for node in members]
    if own[-1] - own[0] + 1 == len(own):
        return True
    mark = Piece("", (), (), ())
    return len(_ordered(scope, {**units, **dict.fromkeys(members, mark)})) > 0


def _ordered(calls: Sequence[Node], units: dict[Node, Step]) -> list[Step]:
    """A valid order of the steps, close to that of the calls; empty if there is none."""
    unit = {node: units.get(node, node) for node in calls}
    last = {unit[node]: place for place, node in enumerate(calls)}
    needs: dict[Step, set[Step]] = {step: set() for step in last}
    for node in calls:
        sources = {unit[source] for source in node.all_input_nodes if source in unit}
        needs[unit[node]] |= sources - {unit[node]}
    users: dict[Step, list[Step]] = {step: [] for step in last}
    for step, sources in needs.items():
        for source in sources:
            users[source].append(step)
    ready = [(last[step], step) for step, sources in needs.items() if not sources]
    heapq.heapify(ready)
    ordered: list[Step] = []
    while ready:
        _, step = heapq.heappop(ready)
        ordered.append(step)
        for user in users[step]:
            needs[user].discard(step)
            if not needs[user]:
                heapq.heappush(ready, (last[user], user))
    return ordered if len(ordered) == len(last) else []
