"""Open the archives of one model where timm cannot be imported, and plan a student for each.

`archives.py` starts it in a fresh process. Its only argument is a folder with `task.json` (the
input's shape and the dotted names of the model's modules) and one archive per kind, such as
"traced.pt" or "pt2-static.pt2". The result of each is appended to `rows.jsonl` in that folder as
one line of JSON.
"""

from __future__ import annotations

import json
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fitcompress.events import ignore
from fitcompress.models.open import open_teacher
from fitcompress.recipe.recipe import Recipe, resolve_recipe
from fitcompress.student.planner import Planned, make_regressors, plan_run

DEPTH_MULT, WIDTH_MULT = 2.0, 0.3
BATCH_SIZES = (2, 3)


def reopen(folder: Path) -> None:
    """Append a line for each archive."""
    task = json.loads((folder / "task.json").read_text())
    for path in sorted(folder.glob("*.pt*"), key=lambda path: path.stat().st_mtime):
        facts: dict[str, Any] = {"kind": path.stem}
        try:
            _measure(path, tuple(task["shape"]), frozenset(task["modules"]), facts)
        except Exception as error:
            facts["notice"] = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
        with (folder / "rows.jsonl").open("a") as file:
            file.write(json.dumps(facts) + "\n")


def _measure(path: Path, shape: tuple[int, ...], known: frozenset[str], facts: Any) -> None:
    """Fill in the results of one archive, as far as they are reached."""
    settings = {
        "teacher.source": str(path),
        "teacher.input_size": list(shape),
        "student.depth_mult": DEPTH_MULT,
        "student.width_mult": WIDTH_MULT,
    }
    recipe = resolve_recipe(settings=settings)
    start = time.perf_counter()
    teacher = open_teacher(recipe.teacher)
    facts["opened"] = True
    planned = plan_run(teacher, recipe, emit=ignore)
    facts["seconds"] = round(time.perf_counter() - start, 2)
    expected = own_outputs(path, shape)
    facts["difference"] = max(
        relative_difference(planned.teacher.network(x), y) for x, y in expected
    )
    _check_student(planned, expected)
    facts["planned"] = True
    facts |= _pair(planned, recipe)
    facts |= _names(planned, known)
    facts["notice"] = "; ".join(planned.summary.notices)


def own_outputs(path: Path, shape: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Random batches and the archive's own outputs. An archive with a fixed batch size of one gets
    the images one by one.
    """
    network = _loaded(path)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn((size, *shape), generator=generator) for size in BATCH_SIZES]
    try:
        return [(x, network(x)) for x in batches]
    except Exception:  # raised by the first view or guard with a fixed batch size
        return [(x, torch.cat([network(row) for row in x.split(1)])) for x in batches]


def _loaded(path: Path) -> Callable[[Tensor], Tensor]:
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    return torch.jit.load(path)


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, as a share of the largest value."""
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return ((found - expected).abs().max() / expected.abs().max()).item()


def _check_student(planned: Planned, expected: list[tuple[Tensor, Tensor]]) -> None:
    """Check that the student's outputs are finite and have the teacher's shape."""
    network = planned.student.network.eval()
    for x, y in expected:
        found = network(x)
        assert found.shape == y.shape, (found.shape, y.shape)
        assert found.isfinite().all(), "the student's outputs are not finite"


def _pair(planned: Planned, recipe: Recipe) -> dict[str, str]:
    pair = planned.pairs[0]
    ((regressor, description),) = make_regressors(planned.pairs, recipe.hints)
    found = regressor(torch.zeros((2, *pair.guided.shape)))
    target = regressor.target(torch.zeros((2, *pair.hint.shape)))
    assert found.shape == target.shape, (found.shape, target.shape)
    return {"hint": pair.hint.name, "guided": pair.guided.name, "regressor": description}


def _names(planned: Planned, known: frozenset[str]) -> dict[str, float]:
    """Shares of names that the model has: of the hint pair, and of the teacher's blocks.

    A copied block gets the next number of its sequence, so numbers are ignored for the student.
    """
    pair, numberless = planned.pairs[0], {_without_numbers(name) for name in known}
    blocks = [name for name, _ in planned.teacher.blocks]
    of_pair = [pair.hint.name in known, _without_numbers(pair.guided.name) in numberless]
    return {
        "pair_named": sum(of_pair) / 2,
        "blocks_named": round(sum(name in known for name in blocks) / max(1, len(blocks)), 3),
    }


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def main() -> None:
    assert sys.modules["timm"] is None, "no archive may need timm"
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with torch.no_grad():
        reopen(Path(sys.argv[1]))
