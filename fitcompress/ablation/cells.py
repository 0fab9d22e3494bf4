"""The runs of an ablation, trained one after another or one per GPU."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fitcompress.ablation.arms import Arm, arm_recipe
from fitcompress.ablation.shared import Shared
from fitcompress.errors import TrainingError
from fitcompress.events import (
    Emit,
    EpochFinished,
    Event,
    Notice,
    Progress,
    StageFinished,
    StageStarted,
)
from fitcompress.models.teacher import Teacher
from fitcompress.recipe.fields import with_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.report.ablation_facts import cell_path
from fitcompress.run.distill import distill
from fitcompress.training.device import resolve_device

__all__ = ["Cell", "Failure", "train_cells"]

Failure = tuple[str, int, str]
"""Arm, seed and message of a run that failed."""


@dataclass(frozen=True)
class Cell:
    """The run of an arm with a seed."""

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


def train_cells(
    cells: Sequence[Cell], shared: Shared, *, given_teacher: Teacher | None, emit: Emit
) -> list[Failure]:
    """Trains the runs, in parallel if there are several GPUs, and returns those that failed.

    given_teacher: a teacher that only this process has, which rules out parallel processes.
    """
    devices = visible_devices(shared.recipe)
    if len(devices) > 1 and given_teacher is None:
        return _train_in_parallel(cells, devices, emit)
    return _train_in_turn(cells, shared, emit)


def visible_devices(recipe: Recipe) -> list[str]:
    """A value of CUDA_VISIBLE_DEVICES for each run that can be trained at the same time."""
    if resolve_device(recipe.run.device) != "cuda":
        return [""]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))


def _train_in_turn(cells: Sequence[Cell], shared: Shared, emit: Emit) -> list[Failure]:
    failed = []
    for number, cell in enumerate(cells, 1):
        message = f"{cell.name}: run {number} of {len(cells)}"
        emit(Notice(topic="run", code="ablation-run-started", message=message))
        try:
            distill(cell.recipe, teacher=shared.teacher, resume=True, emit=_stages_of(cell, emit))
        except TrainingError as error:
            failed.append(_failure(cell, error, emit))
        if all(other.seed != cell.seed for other in cells[number:]):
            shutil.rmtree(shared.cache_path, ignore_errors=True)  # another seed has other views
    return failed


def _failure(cell: Cell, error: TrainingError, emit: Emit) -> Failure:
    message = f"{cell.name} failed: {error.message}"
    emit(Notice(topic="run", code="ablation-run-failed", message=message))
    return cell.arm.name, cell.seed, error.message


def _stages_of(cell: Cell, emit: Emit) -> Emit:
    """A listener that passes on the stages of a run, named after it, and none of its notices."""

    def emit_stage(event: Event) -> None:
        if isinstance(event, StageStarted | Progress | EpochFinished | StageFinished):
            emit(replace(event, stage=f"{cell.name}, {event.stage}"))

    return emit_stage


def _train_in_parallel(cells: Sequence[Cell], devices: Sequence[str], emit: Emit) -> list[Failure]:
    context = multiprocessing.get_context("spawn")
    free = context.SimpleQueue()
    for device in devices:
        free.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _claim_device, (free,))
    waiting, running = list(cells), dict[Future[float], Cell]()
    failed = []
    try:
        while waiting or running:
            while waiting and len(running) < len(devices):
                cell = waiting.pop(0)
                emit(StageStarted(stage=cell.name))
                running[pool.submit(_train, cell.recipe)] = cell
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                cell = running.pop(future)
                try:
                    seconds = future.result()
                except TrainingError as error:
                    failed.append(_failure(cell, error, emit))
                else:
                    emit(StageFinished(stage=cell.name, seconds=seconds, num_images=0, detail={}))
    finally:
        pool.shutdown()
    return failed


def _claim_device(free: Any) -> None:
    """Reserves a GPU for a new process, before torch looks for them."""
    os.environ["CUDA_VISIBLE_DEVICES"] = free.get()


def _train(recipe: Recipe) -> float:
    """Seconds that the stages of a run took."""
    report = distill(recipe, resume=True)
    return float(sum(stage.seconds or 0.0 for stage in report.stages))
