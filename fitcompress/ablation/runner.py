"""What a student owes to its teacher: the same student trained in several ways, over several seeds.
Layer: pipeline.

Each arm and seed is a run of its own, which differs from the others in the settings of the arm
alone; teacher, data and what was measured to choose settings are shared.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fitcompress.ablation.arms import COMMON, QUESTIONS, Arm, Question, arm_recipe, arms_by_name
from fitcompress.atomic import write_json
from fitcompress.errors import DataError, RunError, TeacherError, TrainingError
from fitcompress.evaluation.predict import images_digest
from fitcompress.events import Emit, Event, Notice, StageFinished, StageStarted, ignore
from fitcompress.formatting import duration_text
from fitcompress.models.model import output_kinds
from fitcompress.models.teacher import Teacher
from fitcompress.ranks import num_processes
from fitcompress.recipe.fields import differing_settings, flat_settings, with_settings
from fitcompress.recipe.recipe import Recipe, continued_recipe, load_recipe, recipe_to_toml
from fitcompress.report.ablation_facts import ABLATION, Ablation, cell_path
from fitcompress.run.distill import distill
from fitcompress.run.estimate import training_seconds
from fitcompress.run.prepare import Prepared, prepare_run
from fitcompress.run.resolve import resolve_compile
from fitcompress.rundir import RunDir
from fitcompress.student.planner import plan_run
from fitcompress.training.device import resolve_device, used_threads

__all__ = ["ablate"]

_ANSWERS, _TEACHER = "answers", "teacher"
_NOTHING: dict[str, Any] = {"arms": [], "cells": [], "is_extended": False, "shared": {}}
"""What `ablation.json` says before there is one."""
_NUM_SEEDS = 5


def ablate(
    recipe: Recipe,
    *,
    arms: Sequence[Arm] | None = None,
    seeds: Sequence[int] | None = None,
    teacher: Teacher | None = None,
    resume: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> Ablation:
    """Trains the recipe's student in the way of every arm with every seed, below `run.out`. With
    several GPUs, a run on each at a time.

    arms: the usual ones, if None; of an ablation that goes on, those that it has.
    seeds: likewise, five from the recipe's seed on.
    teacher: one that is open already, instead of `recipe.teacher.source`.
    resume: go on with what was asked for before, by its recipe; arms and seeds come to it, and
        every arm has every seed.

    A run whose training fails does not end the others: see `Ablation.failed`.

    Raises:
        FitcompressError: see `errors`; runs that are finished by then are kept.
        Interrupted: stopped by a signal; `resume=True` goes on.
    """
    if num_processes() > 1:
        raise RunError(
            "ablating: several processes were launched",
            advice="launch one, which trains on every GPU that it sees",
        )
    with used_threads(recipe.run.threads):
        return _ablate(recipe, arms, seeds, teacher, resume=resume, force=force, emit=emit)


def _ablate(
    recipe: Recipe,
    arms: Sequence[Arm] | None,
    seeds: Sequence[int] | None,
    teacher: Teacher | None,
    *,
    resume: bool,
    force: bool,
    emit: Emit,
) -> Ablation:
    root = Path(recipe.run.out or "runs/ablation")
    known = _NOTHING | ((RunDir(root).read_json(ABLATION) if resume else None) or {})
    # what cannot be is refused before anything is removed or trained
    named = arms_by_name(recipe, known["arms"], arms)
    if not resume:
        _make_room(root, force=force)
    run = RunDir.create(root / _TEACHER, resume=True)
    prepared = prepare_run(_asked(recipe, run, emit), run, teacher, emit, resume=True)
    # every arm runs the teacher in the form measured here, also in a resumed ablation
    run.write_text("recipe.toml", recipe_to_toml(prepared.recipe))
    _require_accuracy(prepared)
    shared = _shared(prepared, known, emit)
    base = _base(prepared, shared, root, run)
    cells = _cells(root, base, known, named, seeds)
    facts = _facts(prepared.teacher, shared, cells, known)
    write_json(root / ABLATION, facts)
    missing = [cell for cell in cells if not RunDir(cell.path).is_finished()]
    each = duration_text(shared["seconds"])
    message = f"{len(missing)} of {len(cells)} runs are to be trained, {each} each"
    emit(Notice(topic="run", message=message))
    devices = _devices(base)
    if len(devices) > 1 and teacher is None:
        failed = _train_beside_each_other(missing, devices, emit)
    else:
        failed = _train_in_turn(missing, prepared.teacher, root, emit)
    shutil.rmtree(root / _ANSWERS, ignore_errors=True)
    write_json(root / ABLATION, {**facts, "failed": failed})
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


# --- what the runs share -----------------------------------------------------------------------


def _asked(recipe: Recipe, run: RunDir, emit: Emit) -> Recipe:
    """The recipe of all arms: the stored one where there is one, which `recipe` may only repeat.

    Raises:
        RecipeError: it says something else.
    """
    told, usual = flat_settings(recipe), flat_settings(Recipe())
    for name, common in COMMON.items():
        if told[name] not in (common, usual[name]):
            message = f"all arms begin with {name} = {common!r} instead of {told[name]!r}"
            emit(Notice(topic="run", message=message))
    asked = with_settings(recipe, {**COMMON, "run.out": str(run.path)})
    if not run.is_run():
        return asked
    return continued_recipe(load_recipe(run.recipe_path), asked, run.path.parent)


def _require_accuracy(prepared: Prepared) -> None:
    """Refuses to train what could not be judged in the end."""
    teacher = prepared.teacher
    if not teacher.num_classes or teacher.interface.output_kind == "labels":
        raise TeacherError(
            f"ablating '{teacher.name}': arms are compared by their accuracy, and its outputs are"
            " not classes",
            advice="`fitcompress distill` works for it",
        )
    if not prepared.data.is_labeled:
        raise DataError(
            "ablating: arms are compared by their accuracy, and not all images have a label"
        )


def _shared(prepared: Prepared, known: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """What is the same in all runs, now and when more are added: the `teacher`, the `images` that
    they are judged on, `settings` that each run would else decide or measure for itself, and about
    how many `seconds` a run with a teacher takes.

    Raises:
        RunError: teacher or images are others than before.
        TeacherError: an output is learnt from the teacher in every arm.
    """
    same = {
        "teacher": prepared.teacher.fingerprint,
        "images": images_digest(prepared.data.evaluation),
    }
    if not known["shared"]:
        return {**same, **_decided(prepared, emit)}
    changed = [name for name, mark in same.items() if known["shared"][name] != mark]
    if changed:
        raise RunError(
            f"going on with an ablation: the {changed[0]} changed since it was begun",
            advice="runs would not be comparable: choose another --out",
        )
    return dict(known["shared"])


def _decided(prepared: Prepared, emit: Emit) -> dict[str, Any]:
    """`settings` and `seconds`, measured on this machine."""
    base = prepared.recipe
    planned = plan_run(prepared.teacher, base, emit=emit)
    if "values" in output_kinds(planned.teacher):
        raise TeacherError(
            f"ablating '{prepared.teacher.name}': one of its outputs is no classes, and would be"
            " learnt from it in every arm"
        )
    seconds = training_seconds(base, prepared.data, planned) or 0.0
    compiled = resolve_compile(base, prepared.data, planned.student, seconds, emit)
    settings: dict[str, Any] = {"run.compile": compiled.run.compile}
    if base.data.views is None:  # of all epochs, which are the same in all arms of a seed
        settings["data.views"] = (base.stage1.epochs or 0) + (base.stage2.epochs or 0) or None
    if base.student.target_latency and planned.plan:  # measured again, it would be another student
        settings |= {
            "student.target_latency": None,
            "student.target_flops": None,
            "student.target_macs": f"{planned.plan.limits.macs:.0f}",
            "student.depth_mult": planned.plan.depth_mult,
        }
    return {"settings": settings, "seconds": seconds}


def _base(prepared: Prepared, shared: dict[str, Any], root: Path, run: RunDir) -> Recipe:
    """The recipe of all runs, which the arms change."""
    base, settings = prepared.recipe, dict(shared["settings"])
    if base.run.cache_teacher == "auto":
        settings["run.cache_teacher"] = str(root / _ANSWERS)
    if prepared.adaptation:
        settings |= {"teacher.source": str(run.teacher_path), "teacher.weights": None}
    return with_settings(base, settings)


def _cells(
    root: Path,
    base: Recipe,
    known: dict[str, Any],
    named: dict[str, Arm],
    seeds: Iterable[int] | None,
) -> list[_Cell]:
    """Every arm with every seed that was asked for, now or before, seed by seed."""
    first, before = base.run.seed, {seed for _, seed in known["cells"]}
    usual = () if before else range(first, first + _NUM_SEEDS)
    every = before.union(usual if seeds is None else seeds)
    return [_Cell(root, arm, seed, base) for seed in sorted(every) for arm in named.values()]


def _facts(
    teacher: Teacher, shared: dict[str, Any], cells: Sequence[_Cell], known: dict[str, Any]
) -> dict[str, Any]:
    """What the report needs to know of the whole, and what goes on needs to know of before."""
    arms = {cell.arm.name: cell for cell in cells}
    own = [
        Question(arm.name, arm.against, f"'{arm.name}' ({arm.meaning}) over {arm.against}")
        for arm in (cell.arm for cell in arms.values())
        if arm.sets and arm.name != arm.against
    ]
    asked = [[cell.arm.name, cell.seed] for cell in cells]
    has_more = bool(known["cells"]) and len(asked) > len(known["cells"])
    return {
        "teacher": teacher.name,
        "arms": [{**asdict(cell.arm), "changes": _changes(cell)} for cell in arms.values()],
        "cells": asked,
        "questions": [asdict(question) for question in (*QUESTIONS, *own)],
        "is_extended": known["is_extended"] or has_more,
        "shared": shared,
    }


def _changes(cell: _Cell) -> dict[str, Any]:
    changed = differing_settings(arm_recipe(cell.base, cell.arm), cell.base)
    return {name: now for name, (now, _) in changed.items()}


def _make_room(root: Path, *, force: bool) -> None:
    """Removes an ablation that is there, where `force` says so.

    Raises:
        RunError: there is one, and `force` is off.
    """
    if not RunDir(root / _TEACHER).is_run() and not (root / ABLATION).exists():
        return
    if not force:
        raise RunError(
            f"making the ablation '{root}': there is one already",
            advice="go on with --resume, replace it with --force, or choose another --out",
        )
    _clear(root)


def _clear(root: Path) -> None:
    """Removes the ablation that is there, and nothing else."""
    for arm, seed in (RunDir(root).read_json(ABLATION) or _NOTHING)["cells"]:
        shutil.rmtree(cell_path(root, arm, seed), ignore_errors=True)
    for name in (_ANSWERS, _TEACHER):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / ABLATION).unlink(missing_ok=True)


# --- training ----------------------------------------------------------------------------------


Failure = tuple[str, int, str]
"""Arm and seed of a run that failed, and why."""


def _train_in_turn(
    cells: Sequence[_Cell], teacher: Teacher, root: Path, emit: Emit
) -> list[Failure]:
    failed = []
    for number, cell in enumerate(cells, 1):
        emit(Notice(topic="run", message=f"{cell.name}: {number} of {len(cells)} runs"))
        try:
            distill(cell.recipe, teacher=teacher, resume=True, emit=_within(cell, emit))
        except TrainingError as error:
            failed.append(_failure(cell, error, emit))
        if all(other.seed != cell.seed for other in cells[number:]):
            shutil.rmtree(root / _ANSWERS, ignore_errors=True)  # another seed has other views
    return failed


def _failure(cell: _Cell, error: TrainingError, emit: Emit) -> Failure:
    emit(Notice(topic="run", message=f"{cell.name} failed: {error.message}"))
    return cell.arm.name, cell.seed, error.message


def _within(cell: _Cell, emit: Emit) -> Emit:
    """Tells the stages of a run apart from those of others; its notices stay with it."""

    def tell(event: Event) -> None:
        stage = getattr(event, "stage", None)
        if stage is not None:
            emit(replace(event, stage=f"{cell.name}, {stage}"))  # type: ignore[call-arg]

    return tell


def _devices(recipe: Recipe) -> list[str]:
    """Where runs can be trained at the same time, as CUDA_VISIBLE_DEVICES names it."""
    if resolve_device(recipe.run.device) != "cuda":
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


def _train_beside_each_other(
    cells: Sequence[_Cell], devices: Sequence[str], emit: Emit
) -> list[Failure]:
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _take_device, (free,))
    waiting, under_way = list(cells), dict[Future[float], _Cell]()
    failed = []
    try:
        while waiting or under_way:
            while waiting and len(under_way) < len(devices):
                cell = waiting.pop(0)
                emit(StageStarted(stage=cell.name))
                under_way[pool.submit(_train, cell.recipe)] = cell
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                cell = under_way.pop(future)
                try:
                    seconds = future.result()
                except TrainingError as error:
                    failed.append(_failure(cell, error, emit))
                else:
                    emit(StageFinished(stage=cell.name, seconds=seconds, num_images=0, detail={}))
    finally:
        pool.shutdown()
    return failed


def _take_device(free: Any) -> None:
    """In a fresh process, before it looks at the GPUs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def _train(recipe: Recipe) -> float:
    """The seconds that the stages of a run took."""
    report = distill(recipe, resume=True)
    return float(sum(stage["seconds"] for stage in report.stages))
