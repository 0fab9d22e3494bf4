"""Whether the teacher's answers are kept, where, and what that costs. Layer: pipeline.

Knows recipes and run directories; the files themselves are `training.answers`.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fitcompress.data.views import Batch, Views
from fitcompress.distillation.teacher_cache import (
    CachedOutputs,
    CacheLayout,
    ForwardTeacher,
    cache_layout,
    claim_folder,
    paths_of,
    verify_outputs,
    write_outputs,
)
from fitcompress.events import Emit, Notice, StageFinished, StageStarted
from fitcompress.recipe.fields import flat_settings
from fitcompress.recipe.recipe import Recipe
from fitcompress.rundir import RunDir
from fitcompress.training.device import start_accelerator
from fitcompress.training.distributed import ProcessGroup
from fitcompress.training.meter import LossMeter
from fitcompress.training.progress_reporter import ProgressReporter
from fitcompress.training.protocols import TeachingObjective
from fitcompress.training.signals import Interrupted, stop_on_signals

__all__ = ["TeacherCache", "remove_cache"]

_DECISIONS = "cache.json"
_FREE_SHARE = 0.9
"""Of the free disk, at most."""
_WORTH_SAYING = 1e6
"""Bytes from which the disk that is taken is announced."""


@dataclass(frozen=True)
class TeacherCache:
    """Keeps answers for one stage of a run."""

    stage: str
    recipe: Recipe
    run: RunDir
    device: str
    emit: Emit
    subject: str
    """What is asked, and what is asked of it: the teacher's fingerprint, the layers."""

    def attach(self, objective: TeachingObjective, data: Views, split: str, epochs: int) -> None:
        """Gives `data` the teacher's answers to its views, if they come again often enough and fit.

        split: "train" or "held out". What was decided once holds when the run is resumed.

        Raises:
            RunError: the disk is full, or the files hold other answers.
            Interrupted: stopped by a signal; finished files are kept.
        """
        run = self.recipe.run
        if run.cache_teacher == "off" or run.shard or not len(data):
            return  # a teacher in shards answers all processes together, as they train
        group = ProcessGroup(start_accelerator(self.device, "fp32"))
        forward_teacher = partial(_forward_teacher, objective, self.device)
        layout = cache_layout(forward_teacher, data, min(data.num_views or 1, epochs))
        is_kept = group.is_first and self._decide(data, layout, split, epochs)
        if group.all_gather(is_kept)[0]:
            data.teacher_outputs = self._answers(forward_teacher, data, layout, split, group)

    def _decide(self, data: Views, layout: CacheLayout, split: str, epochs: int) -> bool:
        """What was decided when the run began, or is now."""
        decisions = self.run.read_json(_DECISIONS) or {}
        name = f"{self.stage} {split}"
        if name not in decisions:
            decisions[name] = self._is_worth_it(data, layout, split, epochs)
            self.run.write_json(_DECISIONS, decisions)
        return bool(decisions[name])

    def _is_worth_it(self, data: Views, layout: CacheLayout, split: str, epochs: int) -> bool:
        is_shared = self.recipe.run.cache_teacher != "auto"
        if data.num_views is None or (data.num_views >= epochs and not is_shared):
            if is_shared:
                self._notice(
                    f"{self.stage}: every epoch has new views of the {split} images, so no answer"
                    " of the teacher is kept (--views K makes them come again)"
                )
            return False
        root = self._root
        root.mkdir(parents=True, exist_ok=True)
        limit = min(self.recipe.run.cache_gb * 1e9, _FREE_SHARE * shutil.disk_usage(root).free)
        size = f"{layout.num_bytes / 1e6:,.0f} MB"
        if layout.num_bytes > limit:
            self._notice(
                f"{self.stage}: the teacher's answers to the {split} images would take {size}, more"
                f" than {limit / 1e6:,.0f} MB (run.cache_gb, free disk): it runs in every epoch"
            )
            return False
        if layout.num_bytes >= _WORTH_SAYING:
            count = layout.num_samples * layout.num_views
            self._notice(
                f"{self.stage}: the teacher is asked once about {count:,} views of the {split}"
                f" images instead of in each of {epochs} epochs; its answers take {size}"
            )
        return True

    def _answers(
        self,
        forward_teacher: ForwardTeacher,
        data: Views,
        layout: CacheLayout,
        split: str,
        group: ProcessGroup,
    ) -> CachedOutputs:
        name = f"{self.stage} {split}"
        folder = self._root / f"{name.replace(' ', '-')}-{self._key(data)[:16]}"
        claim_folder(folder, layout)
        answers = CachedOutputs(folder, layout)
        is_whole = all(group.all_gather(all(path.is_file() for path in paths_of(folder, layout))))
        if not is_whole:
            self._write(forward_teacher, data, folder, layout, name, (group.rank, group.world_size))
            group.barrier()
        verify_outputs(forward_teacher, data, answers)
        return answers

    def _write(
        self,
        forward_teacher: ForwardTeacher,
        data: Views,
        folder: Path,
        layout: CacheLayout,
        name: str,
        share: tuple[int, int],
    ) -> None:
        stage, size = f"teacher's answers, {name}", self.recipe.data.batch_size
        steps = -(-layout.num_samples // size)
        started = time.monotonic()
        self.emit(StageStarted(stage=stage, num_epochs=layout.num_views, num_steps_per_epoch=steps))
        num_batches = steps * layout.num_views
        reporter = ProgressReporter(
            stage, self.emit, num_steps=num_batches, first_step=0, batch_size=size
        )
        num_done, meter = 0, LossMeter(torch.device("cpu"))
        with stop_on_signals() as stop:
            for num_done in write_outputs(forward_teacher, data, folder, layout, size, share):
                view, place = divmod(num_done - 1, layout.num_samples)
                reporter.report(
                    meter, epoch=view + 1, step=place // size + 1, num_steps_done=num_done // size
                )
                if stop.is_set:
                    raise Interrupted(stage, folder)
        seconds = time.monotonic() - started
        self.emit(StageFinished(stage=stage, seconds=seconds, num_images=num_done, detail={}))

    @property
    def _root(self) -> Path:
        place = self.recipe.run.cache_teacher
        return self.run.cache_path if place == "auto" else Path(place).expanduser()

    def _key(self, data: Views) -> str:
        """All that the answers to a view depend on, as a digest; the images by name, number and
        labels.
        """
        settings = flat_settings(self.recipe)
        chosen = {name: value for name, value in settings.items() if name.startswith(_DECIDING)}
        facts = (
            *(
                self.subject,
                self.stage,
                sorted(chosen.items()),
                data.spec,
                (data.augment, data.padding),
                data.mixup,
            ),
            *(data.seed, len(data), data.images.num_bytes),
            (self.recipe.run.teacher_precision, self.recipe.run.teacher_layout),
        )
        return hashlib.sha256(repr(facts).encode() + data.labels.tobytes()).hexdigest()

    def _notice(self, message: str) -> None:
        self.emit(Notice(topic="training", message=message))


_DECIDING = ("data.source", "data.limit", "teacher.")


def _forward_teacher(
    objective: TeachingObjective, device: str, batch: Batch
) -> tuple[torch.Tensor, ...]:
    """What the teacher says of a batch, computed as a training step does."""
    objective.teacher.to(device).eval()
    return objective.forward_teacher(batch.to(device))


def remove_cache(run: RunDir) -> None:
    """Removes the answers that lie in the run's own directory."""
    shutil.rmtree(run.cache_path, ignore_errors=True)
