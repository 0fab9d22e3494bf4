"""Names of nodes, and new names for tensors and modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import accumulate, chain, count

from torch._ops import OpOverload
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from fitcompress.graph.program import Program

__all__ = ["TakenNames", "common_path", "plain_name", "tidy_names"]


def plain_name(node: Node) -> str:
    """What a node calls: `relu` for `aten.relu_.default`, `getitem` for the operator."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.split("::")[-1].strip("_")
    return str(getattr(node.target, "__name__", node.name))


def tidy_names(program: Program) -> Program:
    """A copy whose nodes are named after what they call and whose `meta` is only the owner."""
    graph, new = Graph(), dict[Node, Node]()
    for node in program.graph.nodes:
        args, kwargs = map_arg((node.args, node.kwargs), new.__getitem__)
        name = plain_name(node) if node.op == "call_function" else node.name
        new[node] = graph.create_node(node.op, node.target, args, kwargs, name)
        new[node].meta = {"owner": node.meta.get("owner", "")}
    return replace(program, graph=graph)


def common_path(paths: Iterable[str]) -> str:
    """The longest dotted path that all paths start with.

    >>> common_path(["blocks.0.norm", "blocks.0.mlp.fc1"])
    'blocks.0'
    """
    shared = []
    for parts in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


class TakenNames:
    """The names in use: of a program's tensors and of the modules that contain them.

    >>> names = TakenNames(["layer.0.weight", "layer.1.weight", "norm.weight"])
    >>> names.next_keys(["layer.0", "norm"])
    {'layer.0': 'layer.2', 'norm': 'norm_2'}
    """

    def __init__(self, tensors: Iterable[str]) -> None:
        self._modules: set[str] = set()
        self._tensors: set[str] = set()
        self._highest: dict[str, int] = {}
        self.take(tensors)

    def take(self, tensors: Iterable[str]) -> None:
        """Mark these names as used."""
        for name in tensors:
            *modules, tensor = _prefixes(name)
            self._modules.update(modules)
            self._tensors.add(tensor)
            _note_numbers(self._highest, (*modules, tensor))

    def next_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """For each dotted prefix the next free one in its sequence: `layer1.2` -> `layer1.3`, `b2`
        -> `b3`. Does not mark them as used.
        """
        renamed: dict[str, str] = {}
        given: dict[str, int] = {}
        for key in keys:
            stem = key.rstrip(_DIGITS)
            if stem == key:
                renamed[key] = next(n for n in _numbered(key) if n not in self._modules)
            else:
                last = max(self._highest.get(stem, 0), given.get(stem, 0))
                renamed[key] = f"{stem}{last + 1}"
            _note_numbers(given, _prefixes(renamed[key]))
        return renamed

    def free_name(self, name: str) -> str:
        """`name_2`, or the first higher number that is free."""
        return next(filter(self._is_free, _numbered(name)))

    def free_path(self, path: str) -> str:
        """The path itself if it is free, otherwise with the first free number from 2 on."""
        paths = chain([path], (f"{path}{number}" for number in count(2)))
        return next(filter(self._is_free, paths))

    def _is_free(self, name: str) -> bool:
        return name not in self._modules and name not in self._tensors


_DIGITS = "0123456789"


def _prefixes(name: str) -> list[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`."""
    return list(accumulate(name.split("."), "{}.{}".format))


def _note_numbers(highest: dict[str, int], prefixes: Iterable[str]) -> None:
    """Update the highest number that follows each stem."""
    for prefix in prefixes:
        stem = prefix.rstrip(_DIGITS)
        if stem != prefix:
            highest[stem] = max(highest.get(stem, 0), int(prefix[len(stem) :]))


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}_{number}" for number in count(2))
