"""Cached outputs of the frozen teacher for every view of a data set.

Each view, output and shard (a range of samples) has a `.npy` file. Files are written atomically, so
a killed run continues with the next shard. Loaders, worker processes included, read rows through a
memory map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fitcompress.atomic import atomic_path, write_json
from fitcompress.data.views import Batch, Views
from fitcompress.errors import RunError

__all__ = [
    "CacheLayout",
    "CachedOutputs",
    "ForwardTeacher",
    "cache_layout",
    "cache_paths",
    "claim_folder",
    "verify_outputs",
    "write_outputs",
]

ForwardTeacher = Callable[[Batch], tuple[Tensor, ...]]
"""From a batch to the teacher's outputs (N, ...), on any device."""

_SHARD_BYTES = 2**26
"""Large enough to make few files, small enough that a kill loses seconds of work."""
_LAYOUT = "layout.json"
_TOLERANCE = 0.01
"""Share of an output's norm: kernels depend on the batch size, and TF32 rounds to 10 bits."""


@dataclass(frozen=True)
class CacheLayout:
    """The sizes of a cache. All values are float32."""

    num_samples: int
    num_views: int
    shapes: tuple[tuple[int, ...], ...]
    """The shape of each output, without the batch."""

    @property
    def sample_bytes(self) -> int:
        """Bytes per view and sample."""
        return 4 * sum(map(math.prod, self.shapes))

    @property
    def num_bytes(self) -> int:
        """Bytes of all files, without their headers."""
        return self.sample_bytes * self.num_samples * self.num_views

    @property
    def shard_size(self) -> int:
        """Samples per shard; the last one may have fewer."""
        return max(1, _SHARD_BYTES // max(1, self.sample_bytes))

    @property
    def num_shards(self) -> int:
        """Shards per view and output."""
        return -(-self.num_samples // self.shard_size)


def cache_layout(forward_teacher: ForwardTeacher, data: Views, num_views: int) -> CacheLayout:
    """The layout of a cache for `data`; runs the teacher on one sample."""
    outputs = forward_teacher(data.batch([0]))
    return CacheLayout(len(data), num_views, tuple(tuple(value.shape[1:]) for value in outputs))


def cache_paths(folder: Path, layout: CacheLayout) -> Iterator[Path]:
    """The files of a complete cache."""
    for view in range(layout.num_views):
        for shard in range(layout.num_shards):
            yield from _shard_paths(folder, layout, view, shard)


class CachedOutputs:
    """Reads a cache; pickles to a worker process as a path."""

    def __init__(self, folder: Path, layout: CacheLayout) -> None:
        self.folder, self.layout = folder, layout
        self._shards: dict[Path, npt.NDArray[np.float32]] = {}

    def __call__(self, ids: Sequence[int], view: int) -> tuple[Tensor, ...]:
        """The outputs for one view of some samples, float32 (N, ...) each."""
        shards, rows = np.divmod(np.asarray(ids), self.layout.shard_size)
        found = [np.empty((len(rows), *shape), np.float32) for shape in self.layout.shapes]
        for shard in np.unique(shards):
            chosen = shards == shard
            for output, values in enumerate(found):
                values[chosen] = self._shard(view, output, int(shard))[rows[chosen]]
        return tuple(map(torch.from_numpy, found))

    def _shard(self, view: int, output: int, shard: int) -> npt.NDArray[np.float32]:
        path = _shard_path(self.folder, view, output, shard)
        if path not in self._shards:
            self._shards[path] = np.load(path, mmap_mode="r")
        return self._shards[path]

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "layout": self.layout, "_shards": {}}


def write_outputs(
    forward_teacher: ForwardTeacher,
    data: Views,
    folder: Path,
    layout: CacheLayout,
    batch_size: int,
    share: tuple[int, int] = (0, 1),
) -> Iterator[int]:
    """Runs the teacher on all views that are not cached yet; yields the number of views processed
    so far after each batch. A caller that stops early loses the current shard.

    Modifies the epoch of `data`.

    Args:
        share: (index, number): this process writes every `number`-th shard, from `index` on.

    Raises:
        RunError: the folder cannot be written, or has a cache of another layout.
    """
    claim_folder(folder, layout)
    num_done = 0
    for view in range(layout.num_views):
        data.set_epoch(view)
        for shard in range(layout.num_shards):
            start = shard * layout.shard_size
            ids = range(start, min(start + layout.shard_size, layout.num_samples))
            paths = _shard_paths(folder, layout, view, shard)
            is_of_other_rank = (view * layout.num_shards + shard) % share[1] != share[0]
            if is_of_other_rank or all(path.is_file() for path in paths):
                num_done += len(ids)
                yield num_done
                continue
            parts: list[list[Tensor]] = [[] for _ in paths]
            for first in range(ids.start, ids.stop, batch_size):
                batch = data.batch(range(first, min(first + batch_size, ids.stop)))
                for part, value in zip(parts, forward_teacher(batch), strict=True):
                    part.append(value.float().cpu())
                num_done += len(batch)
                yield num_done
            for path, part in zip(paths, parts, strict=True):
                _write(path, torch.cat(part))


def claim_folder(folder: Path, layout: CacheLayout) -> None:
    """Makes the folder of a cache and stores its layout, or compares it with the stored one.

    Raises:
        RunError: the layouts differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, written = folder / _LAYOUT, json.loads(json.dumps(asdict(layout)))
    del written["num_views"]  # views may be added
    if not path.is_file():
        write_json(path, written)
    elif json.loads(path.read_text(encoding="utf-8")) != written:
        raise _other_cache(folder)


def verify_outputs(
    forward_teacher: ForwardTeacher, data: Views, cached: CachedOutputs, num_samples: int = 8
) -> None:
    """Compares some cached outputs with the teacher's current ones.

    Raises:
        RunError: they differ by more than rounding, so the images or the teacher have changed.
    """
    data.set_epoch(0)
    ids = np.linspace(0, len(data) - 1, min(num_samples, len(data))).astype(int).tolist()
    for stored, output in zip(cached(ids, 0), forward_teacher(data.batch(ids)), strict=True):
        expected = output.float().cpu()
        if (stored - expected).norm() > _TOLERANCE * expected.norm() + 1e-6:
            raise _other_cache(cached.folder)


def _other_cache(folder: Path) -> RunError:
    return RunError(
        f"reading the teacher cache {str(folder)!r}: it belongs to a different teacher or"
        " different images",
        code="teacher-cache-mismatch",
        advice="Remove the folder, or choose another one with --cache-teacher.",
        path=str(folder),
    )


def _shard_paths(folder: Path, layout: CacheLayout, view: int, shard: int) -> list[Path]:
    """One path per output."""
    return [_shard_path(folder, view, output, shard) for output in range(len(layout.shapes))]


def _shard_path(folder: Path, view: int, output: int, shard: int) -> Path:
    return folder / f"view{view}-output{output}-shard{shard:05}.npy"


def _write(path: Path, values: Tensor) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.numpy())
