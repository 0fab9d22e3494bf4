"""What a student owes to its teacher: the same student trained in several ways, over several seeds.
Layer: pipeline.

Each arm and seed is a run of its own, which differs from the others in the settings of the arm
alone; teacher, data and what was measured to choose settings are shared.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fitcompress.arms import QUESTIONS, Arm, arm_recipe
from fitcompress.errors import RecipeError, RunError
from fitcompress.events import Emit, Event, Notice, StageFinished, StageStarted, ignore
from fitcompress.pipeline import distill
from fitcompress.preparing import prepare_teacher
from fitcompress.processes import num_processes
from fitcompress.recipe import Recipe, load_recipe
from fitcompress.report.ablation import ABLATION, Ablation, cell_path
from fitcompress.rundir import RunDir, write_json
from fitcompress.session import on_its_threads
from fitcompress.settings import differing_settings, with_settings
from fitcompress.teacher import Teacher
from fitcompress.training import resolve_device

__all__ = ["ablate"]

_ANSWERS, _TEACHER = "answers", "teacher"


@on_its_threads
def ablate(
    recipe: Recipe,
    *,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    teacher: Teacher | None = None,
    resume: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> Ablation:
    """Trains the recipe's student in the way of every arm with every seed, below `run.out`. With
    several GPUs, a run on each at a time.

    teacher: one that is open already, instead of `recipe.teacher.source`.
    resume: go on with what is there; arms and seeds may be more than before, settings not others.

    Raises:
        FitcompressError: see `errors`; runs that are finished by then are kept.
        Interrupted: stopped by a signal; `resume=True` goes on.
    """
    if num_processes() > 1:
        raise RunError(
            "ablating: several processes were launched",
            advice="launch one, which trains on every GPU that it sees",
        )
    root = Path(recipe.run.out or "runs/ablation")
    if not resume and not force and (root / ABLATION).exists():
        raise RunError(
            f"making the ablation '{root}': there is one already",
            advice="go on with --resume, replace it with --force, or choose another --out",
        )
    if force:
        _clear(root)
    run = RunDir.create(root / _TEACHER, resume=True)
    settings = {"run.timing": "none", "run.baseline": False, "run.out": str(run.path)}
    asked = with_settings(recipe, settings)
    if run.is_run():
        _require_same(asked, load_recipe(run.recipe_path), root)
    prepared = prepare_teacher(asked, run, teacher, emit, resume=True)
    base, opened = prepared.session.recipe, prepared.teacher
    if base.run.cache_teacher == "auto":
        base = with_settings(base, {"run.cache_teacher": str(root / _ANSWERS)})
    cells = [_Cell(root, arm, seed, base) for seed in seeds for arm in arms]
    _write_facts(root, opened, cells)
    missing = [cell for cell in cells if not RunDir(cell.path).is_finished()]
    devices = _devices(base)
    if len(devices) > 1 and teacher is None:
        _train_beside_each_other(missing, devices, emit)
    else:
        for number, cell in enumerate(missing, len(cells) - len(missing) + 1):
            emit(Notice(topic="run", message=f"{cell.name}: {number} of {len(cells)} runs"))
            distill(cell.recipe, teacher=opened, resume=True, emit=_within(cell, emit))
    shutil.rmtree(root / _ANSWERS, ignore_errors=True)
    return Ablation.load(root)


@dataclass(frozen=True)
class _Cell:
    """A run of an arm."""

    root: Path
    arm: Arm
    seed: int
    base: Recipe

    @property
    def path(self) -> Path:
        return cell_path(self.root, self.arm.name, self.seed)

    @property
    def name(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"

    @property
    def recipe(self) -> Recipe:
        own = {"run.seed": self.seed, "run.out": str(self.path)}
        return with_settings(arm_recipe(self.base, self.arm), own)


def _require_same(asked: Recipe, stored: Recipe, root: Path) -> None:
    """Refuses to add to runs that were trained by other settings."""
    for name, (now, then) in differing_settings(asked, stored).items():
        if not name.startswith("run.") and now not in (None, "auto"):
            raise RecipeError(
                f"cannot go on with '{root}' with {name} = {now!r}: it was started with {then!r}",
                advice="leave that setting out, or choose another --out",
            )


def _clear(root: Path) -> None:
    """Removes the runs of the ablation that is there, and nothing else."""
    facts = RunDir(root).read_json(ABLATION) or {"arms": [], "seeds": []}
    for arm in facts["arms"]:
        for seed in facts["seeds"]:
            shutil.rmtree(cell_path(root, arm["name"], seed), ignore_errors=True)
    for name in (_ANSWERS, _TEACHER):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / ABLATION).unlink(missing_ok=True)


def _write_facts(root: Path, teacher: Teacher, cells: Sequence[_Cell]) -> None:
    """What the report needs to know of the whole; what was asked for before stays in it."""
    known = RunDir(root).read_json(ABLATION) or {"arms": [], "seeds": []}
    asked = {cell.arm.name: _arm_facts(cell) for cell in cells}
    facts = {
        "teacher": teacher.name,
        "arms": [*(arm for arm in known["arms"] if arm["name"] not in asked), *asked.values()],
        "seeds": sorted({*known["seeds"], *(cell.seed for cell in cells)}),
        "questions": [asdict(question) for question in QUESTIONS],
    }
    write_json(root / ABLATION, facts)


def _arm_facts(cell: _Cell) -> dict[str, Any]:
    changed = differing_settings(arm_recipe(cell.base, cell.arm), cell.base)
    settings = {name: now for name, (now, _) in changed.items()}
    return {"name": cell.arm.name, "meaning": cell.arm.meaning, "settings": settings}


def _within(cell: _Cell, emit: Emit) -> Emit:
    """Tells the stages of a run apart from those of others; its notices stay with it."""

    def tell(event: Event) -> None:
        stage = getattr(event, "stage", None)
        if stage is not None:
            emit(replace(event, stage=f"{cell.name}, {stage}"))  # type: ignore[call-arg]

    return tell


# --- several devices ---------------------------------------------------------------------------


def _devices(recipe: Recipe) -> list[str]:
    """Where runs can be trained at the same time, as CUDA_VISIBLE_DEVICES names it."""
    if resolve_device(recipe.run.device) != "cuda":
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


def _train_beside_each_other(cells: Sequence[_Cell], devices: Sequence[str], emit: Emit) -> None:
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _take_device, (free,))
    try:
        for cell in cells:
            emit(StageStarted(stage=cell.name))
        started = {pool.submit(_train, cell.recipe): cell for cell in cells}
        left = set(started)
        while left:
            done, left = wait(left, timeout=1.0, return_when=FIRST_EXCEPTION)
            for future in done:
                seconds = future.result()
                name = started[future].name
                emit(StageFinished(stage=name, seconds=seconds, num_images=0, detail={}))
    finally:
        pool.shutdown(cancel_futures=True)


def _take_device(free: Any) -> None:
    """In a fresh process, before it looks at the GPUs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def _train(recipe: Recipe) -> float:
    """The seconds that the stages of a run took."""
    report = distill(recipe, resume=True)
    return float(sum(stage["seconds"] for stage in report.stages))
