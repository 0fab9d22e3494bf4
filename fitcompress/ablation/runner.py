"""Runs an ablation: trains a student with and without parts of the teacher's supervision.

Each arm and seed is a run of its own, which differs from the others only in the settings of its
arm. All runs share the teacher, the images and the settings that a single run would measure.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fitcompress.ablation.arms import QUESTIONS, Arm, Question, arm_recipe, arms_by_name
from fitcompress.ablation.cells import Cell, train_cells
from fitcompress.ablation.shared import CACHE_FOLDER, TEACHER_FOLDER, Shared, prepare_shared
from fitcompress.atomic import write_json
from fitcompress.errors import RunError
from fitcompress.events import Emit, Notice, ignore
from fitcompress.formatting import duration_text
from fitcompress.models.teacher import Teacher
from fitcompress.ranks import num_processes
from fitcompress.recipe.fields import differing_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.records.ablation_record import AblationRecord, ArmRecord, QuestionRecord
from fitcompress.report.ablation_facts import ABLATION, cell_path
from fitcompress.report.ablation_report import Ablation
from fitcompress.rundir import RunDir
from fitcompress.training.device import used_threads

__all__ = ["ablate"]

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
    """Trains the recipe's student in the way of every arm with every seed, in directories below
    `recipe.run.out`. With several GPUs, each trains one run at a time.

    Args:
        arms: by default those of `DEFAULT_ARMS`, or the stored ones of a resumed ablation.
        seeds: by default five, starting with the recipe's seed, or the stored ones.
        teacher: an opened teacher (`teacher_from_module`), instead of `recipe.teacher.source`.
        resume: continue the stored ablation; new arms and seeds are added, and every arm is run
            with every seed.
        force: replace the stored ablation.

    A run whose training fails does not end the others: see `Ablation.failed`.

    Raises:
        FitcompressError: see `errors`; finished runs are kept.
        Interrupted: stopped by a signal; `resume=True` continues.
    """
    if num_processes() > 1:
        raise RunError(
            f"running an ablation: expected one process, got {num_processes()}",
            code="ablation-in-processes",
            advice="Launch one process; it uses every visible GPU.",
            expected=1,
            got=num_processes(),
        )
    root = Path(recipe.run.out or "runs/ablation")
    with used_threads(recipe.run.threads):
        stored = _stored(root) if resume else None
        # invalid arms are refused before anything is removed or trained
        named = arms_by_name(recipe, _arms(stored), arms)
        if not resume:
            _make_room(root, force=force)
        shared = prepare_shared(recipe, root, stored.shared if stored else None, teacher, emit)
        cells = _cells(root, shared.recipe, named, _seeds(stored, seeds, recipe.run.seed))
        record = _record(shared, cells, stored)
        write_json(root / ABLATION, record.to_dict())
        missing = [cell for cell in cells if not RunDir(cell.path).is_finished()]
        message = (
            f"{len(missing)} of {len(cells)} runs are left to train, about"
            f" {duration_text(shared.facts.seconds)} each"
        )
        emit(Notice(topic="run", code="ablation-runs-left", message=message))
        failed = train_cells(missing, shared, given_teacher=teacher, emit=emit)
        shutil.rmtree(shared.cache_path, ignore_errors=True)
        write_json(root / ABLATION, replace(record, failed=tuple(failed)).to_dict())
        return Ablation.load(root)


def _stored(root: Path) -> AblationRecord | None:
    facts = RunDir(root).read_json(ABLATION)
    return AblationRecord.from_dict(facts) if facts else None


def _arms(stored: AblationRecord | None) -> list[Arm]:
    return [
        Arm(arm.name, arm.meaning, arm.settings, arm.is_long, arm.sets, arm.against)
        for arm in (stored.arms if stored else ())
    ]


def _seeds(stored: AblationRecord | None, requested: Sequence[int] | None, first: int) -> set[int]:
    """The stored and the requested seeds, or five if there are none."""
    known = {seed for _, seed in (stored.cells if stored else ())}
    if requested is None:
        requested = () if known else range(first, first + _NUM_SEEDS)
    return known.union(requested)


def _cells(root: Path, base: Recipe, named: Mapping[str, Arm], seeds: set[int]) -> list[Cell]:
    """Every arm with every seed, seed by seed."""
    return [Cell(root, arm, seed, base) for seed in sorted(seeds) for arm in named.values()]


def _record(shared: Shared, cells: Sequence[Cell], stored: AblationRecord | None) -> AblationRecord:
    """`ablation.json`: what the report and a resumed ablation need."""
    arms = {cell.arm.name: cell.arm for cell in cells}.values()
    custom = [
        Question(arm.name, arm.against, f"'{arm.name}' ({arm.meaning}) over {arm.against}")
        for arm in arms
        if arm.sets and arm.name != arm.against
    ]
    return AblationRecord(
        teacher=shared.teacher.name,
        arms=tuple(
            ArmRecord.from_dict({**asdict(arm), "changes": _changes(shared.recipe, arm)})
            for arm in arms
        ),
        cells=tuple((cell.arm.name, cell.seed) for cell in cells),
        questions=tuple(
            QuestionRecord.from_dict(asdict(question)) for question in (*QUESTIONS, *custom)
        ),
        is_extended=bool(stored and (stored.is_extended or len(cells) > len(stored.cells) > 0)),
        shared=shared.facts,
    )


def _changes(base: Recipe, arm: Arm) -> dict[str, Any]:
    changed = differing_settings(arm_recipe(base, arm), base)
    return {name: value for name, (value, _) in changed.items()}


def _make_room(root: Path, *, force: bool) -> None:
    """With `force`, removes the ablation in `root` and nothing else.

    Raises:
        RunError: there is one, and `force` is off.
    """
    if not RunDir(root / TEACHER_FOLDER).is_run() and not (root / ABLATION).exists():
        return
    if not force:
        raise RunError(
            f"starting an ablation in '{root}': the directory already holds an ablation",
            code="ablation-exists",
            advice="Continue it with --resume, replace it with --force, or choose another --out.",
            path=str(root),
        )
    stored = _stored(root)
    for arm, seed in stored.cells if stored else ():
        shutil.rmtree(cell_path(root, arm, seed), ignore_errors=True)
    for name in (CACHE_FOLDER, TEACHER_FOLDER):
        shutil.rmtree(root / name, ignore_errors=True)
    (root / ABLATION).unlink(missing_ok=True)
