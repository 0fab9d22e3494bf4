"""Whether and where to cache the teacher's outputs; `teacher_cache` handles the files."""

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
    cache_paths,
    claim_folder,
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
"""Share of the free disk space that a cache may take."""
_NOTABLE_BYTES = 1e6
"""Size from which a cache is announced."""
_KEY_SETTINGS = ("data.source", "data.limit", "teacher.")
"""Prefixes of the settings that identify the data and the teacher."""


@dataclass(frozen=True)
class TeacherCache:
    """Caches the teacher's outputs for one stage of a run."""

    stage: str
    recipe: Recipe
    run: RunDir
    device: str
    emit: Emit
    subject: str
    """Identifies the teacher and its layers: a fingerprint and node names."""

    def attach(self, objective: TeachingObjective, data: Views, split: str, epochs: int) -> None:
        """Sets `data.teacher_outputs` to cached outputs, if views repeat and the cache fits on the
        disk. Writes the cache if there is none. A resumed run keeps its first decision.

        Args:
            split: "train" or "held out".
            epochs: of the stage.

        Raises:
            RunError: the disk is full, or the cache is of another teacher or other images.
            Interrupted: stopped by a signal; finished files are kept.
        """
        run = self.recipe.run
        if run.cache_teacher == "off" or run.shard or not len(data):
            return  # a sharded teacher needs all ranks for every batch
        group = ProcessGroup(start_accelerator(self.device, "fp32"))
        forward_teacher = partial(_forward_teacher, objective, self.device)
        layout = cache_layout(forward_teacher, data, min(data.num_views or 1, epochs))
        is_cached = group.is_first and self._decide(data, layout, split, epochs)
        if group.all_gather(is_cached)[0]:
            data.teacher_outputs = self._cached_outputs(forward_teacher, data, layout, split, group)

    def _decide(self, data: Views, layout: CacheLayout, split: str, epochs: int) -> bool:
        """The stored decision of the run, or a new one."""
        decisions = self.run.read_json(_DECISIONS) or {}
        name = f"{self.stage} {split}"
        if name not in decisions:
            decisions[name] = self._is_worthwhile(data, layout, split, epochs)
            self.run.write_json(_DECISIONS, decisions)
        return bool(decisions[name])

    def _is_worthwhile(self, data: Views, layout: CacheLayout, split: str, epochs: int) -> bool:
        is_shared = self.recipe.run.cache_teacher != "auto"
        if data.num_views is None or (data.num_views >= epochs and not is_shared):
            if is_shared:
                self._notice(
                    "views-not-repeated",
                    f"every epoch has new views of the {split} images, so the teacher's outputs"
                    " are not cached (--views K repeats views)",
                )
            return False
        self._root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._root).free
        limit = min(self.recipe.run.cache_gb * 1e9, _FREE_SHARE * free)
        size = f"{layout.num_bytes / 1e6:,.0f} MB"
        if layout.num_bytes > limit:
            self._notice(
                "teacher-cache-too-large",
                f"caching the teacher's outputs for the {split} images would take {size}, more than"
                f" {limit / 1e6:,.0f} MB (run.cache_gb, free disk space), so the teacher runs in"
                " every epoch",
            )
            return False
        if layout.num_bytes >= _NOTABLE_BYTES:
            count = layout.num_samples * layout.num_views
            self._notice(
                "teacher-cached",
                f"the teacher runs once on {count:,} views of the {split} images instead of in each"
                f" of {epochs} epochs; its cached outputs take {size}",
            )
        return True

    def _cached_outputs(
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
        outputs = CachedOutputs(folder, layout)
        is_complete = all(path.is_file() for path in cache_paths(folder, layout))
        if not all(group.all_gather(is_complete)):
            share = (group.rank, group.world_size)
            self._write(forward_teacher, data, folder, layout, name, share)
            group.barrier()
        verify_outputs(forward_teacher, data, outputs)
        return outputs

    def _write(
        self,
        forward_teacher: ForwardTeacher,
        data: Views,
        folder: Path,
        layout: CacheLayout,
        name: str,
        share: tuple[int, int],
    ) -> None:
        stage, size = f"teacher outputs, {name}", self.recipe.data.batch_size
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
        """A digest of everything that the outputs depend on; images count by the name of their data
        set, their number and their labels.
        """
        run, settings = self.recipe.run, flat_settings(self.recipe)
        chosen = {name: value for name, value in settings.items() if name.startswith(_KEY_SETTINGS)}
        # The digest is of this tuple's repr: any change here, nesting included, orphans every cache
        # that was written before.
        facts = (
            self.subject,
            self.stage,
            sorted(chosen.items()),
            data.spec,
            (data.augment, data.padding),
            data.mixup,
            data.seed,
            len(data),
            data.images.num_bytes,
            (run.teacher_precision, run.teacher_layout),
        )
        return hashlib.sha256(repr(facts).encode() + data.labels.tobytes()).hexdigest()

    def _notice(self, code: str, message: str) -> None:
        self.emit(Notice(topic="training", code=code, message=f"{self.stage}: {message}"))


def _forward_teacher(
    objective: TeachingObjective, device: str, batch: Batch
) -> tuple[torch.Tensor, ...]:
    """The teacher's outputs for a batch, computed as in a training step."""
    objective.teacher.to(device).eval()
    return objective.forward_teacher(batch.to(device))


def remove_cache(run: RunDir) -> None:
    """Removes the cache in the run's own directory."""
    shutil.rmtree(run.cache_path, ignore_errors=True)
