"""The order of the packages, held against every import, and against the figure in the README."""

from __future__ import annotations

import ast
import graphlib
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fitcompress"
README = PACKAGE.parent / "README.md"

ORDER = (
    ("root",),
    ("recipe", "graph", "records"),
    ("graph.axes",),
    ("graph.analysis",),
    ("graph.capture",),
    ("data",),
    ("models",),
    ("training",),
    ("evaluation",),
    ("distillation",),
    ("exporters.python",),
    ("exporters",),
    ("student",),
    ("report",),
    ("run",),
    ("api", "ablation"),
    ("cli",),
)
"""From what everything shares to what you type. A package imports those to its left; those of one
place do not know each other. "root" are the modules directly under `fitcompress`, but for the API.
"""

UNKNOWN_TO = {
    "graph": {"recipe", "data"},
    "graph.axes": {"recipe", "data"},
    "graph.analysis": {"recipe", "data"},
    "graph.capture": {"recipe", "data"},
    "data": {"graph"},
    "models": {"data"},
    "report": {"graph", "models", "training", "data", "distillation", "exporters", "student"},
}
"""Packages to the left that one does not know all the same."""

WITHOUT_TORCH = {
    "root",
    "recipe",
    "records",
    "report",
    "cli",
    "graph.axes.algebra",
    "ablation.arms",
}
"""Packages and modules that import neither torch nor what imports it, so that `--help` is fast."""

TORCH_AT_ROOT = {"modes"}

ONLY_IN = {
    "register_forward_hook": {"distillation.hooks"},
    "register_forward_pre_hook": set(),
    "register_module_forward_hook": {"graph.capture.recorder"},
    "register_module_forward_pre_hook": {"graph.capture.recorder"},
    "create_model": {"models.timm_zoo"},
    "torch.fx.experimental.proxy_tensor": {"graph.capture.recorder"},
}
"""Names that are used nowhere else: hooks are removed where they are registered, one module calls
timm's model factory, one touches what is private to torch."""

MOST_ROOT_MODULES, MOST_MODULES = 10, 20


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


def package_of(module: str) -> str:
    """The package of `ORDER` that a module belongs to."""
    if module in ("__init__", "__main__"):
        return "cli"  # what users import, and what they type
    named = {name for place in ORDER for name in place}
    above = [module.rsplit(".", cut)[0] for cut in range(module.count(".") + 1)]
    package = next((name for name in above if name in named), None)
    if package is None and "." not in module and modules()[module].name != "__init__.py":
        return "root"
    assert package, f"{module} belongs to no package of the order"
    return package


def place_of(package: str) -> int:
    return next(place for place, names in enumerate(ORDER) if package in names)


def faults(package: str, imports: set[str]) -> list[str]:
    """Why a module of a package may not import what it imports; empty when it may."""
    found = []
    for module in sorted(imports):
        other = package_of(module)
        if other == package:
            continue
        if place_of(other) >= place_of(package):
            found.append(f"{module}: {other} is not to the left of {package}")
        if any(_is_in(other, unknown) for unknown in UNKNOWN_TO.get(package, ())):
            found.append(f"{module}: {package} does not know {other}")
    return found


def _is_in(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def runs_at_import(tree: ast.Module) -> ast.Module:
    """The imports that run when the module is imported."""
    return ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])


def is_public_use(node: ast.AST, name: str) -> bool:
    """Whether a node imports `name`, or uses it as an attribute or a bare name."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return any(
            imported.endswith(name) or f"{name}." in imported for imported in imported_names(node)
        )
    used = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
    return used == name


@pytest.fixture(autouse=True, scope="module")
def _parsed():
    """Every module is read once, before the first test."""
    for module in modules():
        tree_of(module)


# --- the package -------------------------------------------------------------------------------


def test_every_module_imports_only_from_the_left():
    known = frozenset(modules())
    found = {
        module: faults(package_of(module), own_imports(tree_of(module), known))
        for module in modules()
    }

    assert {module: words for module, words in found.items() if words} == {}


def test_nothing_imports_in_a_circle_functions_included():
    known = frozenset(modules())
    graph = {module: own_imports(tree_of(module), known) - {module} for module in modules()}
    graph["__init__"] = set()  # gives the public names late, to whoever asks

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert set(order) == known


def test_every_package_of_the_order_is_there():
    packages = {name for place in ORDER for name in place} - {"root"}

    assert packages <= set(modules())
    assert set(map(package_of, modules())) == packages | {"root"}


def test_help_does_not_import_torch():
    found = {
        module
        for module in modules()
        if package_of(module) in WITHOUT_TORCH or module in WITHOUT_TORCH
        for name in imported_names(runs_at_import(tree_of(module)))
        if name.split(".")[0] in ("torch", "timm", "numpy", "onnx", "onnxruntime")
    }

    assert found == TORCH_AT_ROOT


def test_the_algebra_of_axes_needs_the_standard_library_only():
    top = {name.split(".")[0] for name in imported_names(tree_of("graph.axes.algebra"))}

    assert top <= sys.stdlib_module_names | {"fitcompress"}
    assert "dataclasses" in top, "no import was read"


@pytest.mark.parametrize(("name", "homes"), ONLY_IN.items())
def test_a_dangerous_name_is_used_in_one_module_only(name, homes):
    users = {
        module
        for module in modules()
        if any(is_public_use(node, name) for node in ast.walk(tree_of(module)))
    }

    assert users == homes


def test_only_the_command_line_prints():
    printing = {
        module
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    }

    assert {package_of(module) for module in printing} <= {"cli"}


def test_folders_are_small_enough_to_look_through():
    folders = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    at_root = [module for module in modules() if "." not in module and module[0] != "_"]
    at_root = [module for module in at_root if modules()[module].name != "__init__.py"]

    assert len(at_root) <= MOST_ROOT_MODULES, at_root
    assert {str(path): n for path, n in folders.items() if n > MOST_MODULES} == {}


def test_no_two_modules_have_one_name():
    names = Counter(path.stem for path in modules().values() if path.stem != "__init__")

    assert [name for name, count in names.items() if count > 1] == []


def test_no_name_differs_from_another_by_its_ending_alone():
    """`hints` and `hinting`, `exports` and `exporting`: nobody can tell which is which."""
    endings = ("s", "ing", "er", "ers", "ed")
    stems = Counter(
        next((path.stem.removesuffix(end) for end in endings if path.stem.endswith(end)), path.stem)
        for path in modules().values()
        if path.stem != "__init__"
    )

    assert [stem for stem, count in stems.items() if count > 1] == []


@pytest.mark.parametrize("package", [name for place in ORDER for name in place if name != "api"])
def test_every_package_docstring_names_its_content_and_imports(package):
    if package == "root":
        return
    said = ast.get_docstring(tree_of(package)) or ""

    assert 2 <= len(said.splitlines()) <= 5
    assert "Imports" in said


def test_the_figure_in_the_readme_is_the_order():
    """What you type stands on top, what everything shares at the bottom."""
    figure = re.search(r"<!-- layers -->\n```text\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert figure, "the README has no figure of the packages"
    drawn = [line.split("|")[0].split() for line in figure[1].splitlines() if "|" in line]

    assert drawn == [list(place) for place in reversed(ORDER)]


# --- the checks can fail -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        (
            "graph.axes.algebra",
            "from fitcompress.graph.capture import eager",
            ["graph.capture.eager: graph.capture is not to the left of graph.axes"],
        ),
        (
            "data.images",
            "from fitcompress.graph import program",
            ["graph.program: data does not know graph"],
        ),
        (
            "errors",
            "def f():\n    from fitcompress.run import distill",
            ["run.distill: run is not to the left of root"],
        ),
        (
            "graph.lift",
            "from fitcompress.recipe.recipe import Recipe",
            [
                "recipe.recipe: recipe is not to the left of graph",
                "recipe.recipe: graph does not know recipe",
            ],
        ),
        (
            "report.page",
            "from fitcompress.graph.axes.algebra import Sum",
            ["graph.axes.algebra: report does not know graph.axes"],
        ),
        ("training.engine", "from fitcompress.data.views import Batch", []),
        ("cli.commands", "import fitcompress", []),
        (
            "recipe.fields",
            "import fitcompress",
            ["__init__: cli is not to the left of recipe"],
        ),
    ],
)
def test_a_wrong_import_is_found(module, source, expected):
    imports = own_imports(ast.parse(source), frozenset(modules()))

    assert faults(package_of(module), imports) == expected


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


def test_a_module_of_no_package_is_found(monkeypatch):
    known = {**modules(), "utils.strings": PACKAGE / "utils" / "strings.py"}
    monkeypatch.setattr(sys.modules[__name__], "modules", lambda: known)

    with pytest.raises(AssertionError, match=r"utils\.strings belongs to no package"):
        package_of("utils.strings")
