"""The layers of the package, held against its imports, and against the figure in the README."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fitcompress"
README = PACKAGE.parent / "README.md"


@dataclass(frozen=True)
class Row:
    """Modules that stand side by side. A row may import itself and the rows above it."""

    modules: tuple[str, ...]
    """Modules or packages below fitcompress; the longest name that fits a module decides."""
    never: tuple[str, ...] = ()
    """Packages of rows above that it must not know all the same."""
    third_party: bool = True
    """Whether it may import anything but the standard library."""


ROWS = (
    Row(
        ("errors", "events", "settings", "spec", "targets", "presets", "sections"),
        third_party=False,
    ),
    Row(("recipe", "arms", "processes", "metadata"), third_party=False),
    Row(("rundir",), third_party=False),
    Row(("data",)),
    Row(("graph.axes",), never=("rundir", "data", "recipe", "events"), third_party=False),
    Row(("graph",), never=("rundir", "data", "recipe")),
    Row(("model", "teacher"), never=("data",)),
    Row(("taps", "hints", "regressors"), never=("data",)),
    Row(("losses", "training")),
    Row(("significance", "environment")),
    Row(("measure", "mistakes", "speed", "onnxfile")),
    Row(("onnxwrite", "quantize", "sourcefile", "exports", "timing", "report")),
    Row(("budgets", "planning", "parts", "session", "teacher_cache")),
    Row(("hinting", "tuning", "stages", "preparing", "evidence", "exporting", "trackers")),
    Row(("pipeline", "ablation", "api")),
    Row(("console", "progress", "cli", "__init__", "__main__")),
)

ONLY_IN = {
    "register_forward_hook": "taps",
    "register_forward_pre_hook": "taps",
    "create_model": "teacher.timm_models",
    "torch.fx.experimental.proxy_tensor": "graph.recording",
}
"""Names that one module alone may use: `taps` restores what it hooks, `teacher` opens every kind of
model, `graph.recording` holds what is private to torch."""


# --- reading the source ------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name below it; packages without "__init__"."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if len(parts) > 1 and parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(encoding="utf-8"))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Everything imported anywhere in a tree: "a.b", and "a.b" too of "from a import b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST, known: frozenset[str]) -> set[str]:
    """The modules of the package that a tree imports, below the package."""
    found = set()
    for name in imported_names(tree):
        if name.split(".")[0] == "fitcompress" and name != "fitcompress.__version__":
            below = name.removeprefix("fitcompress").removeprefix(".")
            while below and below not in known:
                below = below.rpartition(".")[0]
            found.add(below or "__init__")
    return found


def row_of(module: str) -> int:
    """The index of the row that a module stands in."""
    fits = [
        (len(name), index)
        for index, row in enumerate(ROWS)
        for name in row.modules
        if module == name or module.startswith(f"{name}.")
    ]
    assert fits, f"{module} stands in no row of the layer table"
    return max(fits)[1]


def faults(module: str, imports: set[str]) -> list[str]:
    """Why a module may not import what it imports; empty when it may."""
    row = row_of(module)
    below = [f"{name}, a row below" for name in imports if row_of(name) > row]
    strangers = [
        f"{name}, which it must not know"
        for name in imports
        for never in ROWS[row].never
        if name == never or name.startswith(f"{never}.")
    ]
    return below + strangers


def is_public_use(node: ast.AST, name: str) -> bool:
    """Whether a node imports `name`, or uses it as an attribute or a bare name."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any(
            imported.endswith(name) or f"{name}." in imported for imported in imported_names(node)
        )
    used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
    return used == name


# --- the package -------------------------------------------------------------------------------


@pytest.mark.parametrize("module", modules())
def test_a_module_imports_only_from_its_row_and_above(module):
    imports = own_imports(tree_of(module), frozenset(modules()))

    assert faults(module, imports) == []


@pytest.mark.parametrize("module", modules())
def test_the_lowest_rows_need_the_standard_library_only(module):
    top = {name.split(".")[0] for name in imported_names(tree_of(module))}

    third_party = top - sys.stdlib_module_names - {"fitcompress"}
    assert ROWS[row_of(module)].third_party or third_party == set()


@pytest.mark.parametrize(("name", "home"), ONLY_IN.items())
def test_a_dangerous_name_is_used_in_one_module_only(name, home):
    users = {
        module
        for module in modules()
        if any(is_public_use(node, name) for node in ast.walk(tree_of(module)))
    }

    assert users <= {home}


@pytest.mark.parametrize("module", modules())
def test_only_the_console_prints(module):
    prints = [
        node.lineno
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]

    assert prints == [] or row_of(module) == len(ROWS) - 1


def test_modules_do_not_import_each_other_in_a_circle():
    known = frozenset(modules())
    graph = {
        module: own_imports(ast.Module(_at_import(tree_of(module)), []), known) - {module}
        for module in modules()
    }

    assert list(graphlib.TopologicalSorter(graph).static_order())


def _at_import(tree: ast.Module) -> list[ast.stmt]:
    """What runs when a module is imported, as far as imports go."""
    return [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_every_module_named_in_the_table_is_there():
    named = {name for row in ROWS for name in row.modules}

    assert {name for name in named if name not in modules()} == set()


def test_the_figure_in_the_readme_is_this_table():
    figure = re.search(r"<!-- layers -->\n```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert figure, "the README has no figure of the layers"
    drawn = [line.split("|")[1].split() for line in figure[1].splitlines() if "|" in line]

    shown = [[name for name in row.modules if not name.startswith("__")] for row in ROWS]
    assert [[name.replace("/", ".") for name in names] for names in drawn] == shown


# --- the checks can fail -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        (
            "graph.axes",
            "from fitcompress.graph.program import Program",
            ["graph.program, a row below"],
        ),
        ("graph.axes", "import fitcompress.events", ["events, which it must not know"]),
        ("data.images", "from fitcompress.graph import axes", ["graph.axes, a row below"]),
        ("errors", "def f():\n    from fitcompress import pipeline", ["pipeline, a row below"]),
        ("graph.lift", "from fitcompress.data import Batch", ["data, which it must not know"]),
        ("training.engine", "from fitcompress.data import Batch", []),
        ("cli.commands", "from fitcompress import pipeline", []),
        ("recipe", "import fitcompress", ["__init__, a row below"]),
    ],
)
def test_a_wrong_import_is_found(module, source, expected):
    known = frozenset({*modules(), "pipeline", "graph.program"})

    assert faults(module, own_imports(ast.parse(source), known)) == expected


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import timm\ntimm.create_model('x')", "create_model"),
        ("from timm import create_model", "create_model"),
        ("module.register_forward_hook(f)", "register_forward_hook"),
        ("import torch.fx.experimental.proxy_tensor", "torch.fx.experimental.proxy_tensor"),
        (
            "from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode",
            "torch.fx.experimental.proxy_tensor",
        ),
        ("from torch.fx.experimental import proxy_tensor", "torch.fx.experimental.proxy_tensor"),
    ],
)
def test_a_dangerous_name_is_found(source, name):
    assert any(is_public_use(node, name) for node in ast.walk(ast.parse(source)))


def test_a_module_without_a_row_is_found():
    with pytest.raises(AssertionError, match="utils stands in no row"):
        row_of("utils")
