"""What a frozen teacher says about every view of a data set, kept in files. Layer: training.

A view that comes again gets the same answer, so it need not be asked for again. Outputs lie in
shards of consecutive samples, one `.npy` file for each view, output and shard; a file gets its name
when it is whole, so what was written before a kill is used after it. Rows are read through the
memory map by whoever makes batches, worker processes too.
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
    "claim_folder",
    "paths_of",
    "verify_outputs",
    "write_outputs",
]

ForwardTeacher = Callable[[Batch], tuple[Tensor, ...]]
"""What the teacher says about a batch: one tensor (N, ...) for each output, on any device."""

_SHARD_BYTES = 2**26
"""Large enough that a file costs little, small enough that a kill loses seconds of work."""
_LAYOUT = "layout.json"
_TOLERANCE = 0.01
"""Of an answer's norm: other kernels for another batch size, and 10-bit factors on GPUs (TF32)."""


@dataclass(frozen=True)
class CacheLayout:
    """How the answers of a data set lie in their folder. All are float32."""

    num_samples: int
    num_views: int
    shapes: tuple[tuple[int, ...], ...]
    """Of each output, without the batch."""

    @property
    def sample_bytes(self) -> int:
        """Of one view of one sample."""
        return 4 * sum(map(math.prod, self.shapes))

    @property
    def num_bytes(self) -> int:
        """Of all files together, but for their headers."""
        return self.sample_bytes * self.num_samples * self.num_views

    @property
    def shard_size(self) -> int:
        """Samples in a shard; the last one may have fewer."""
        return max(1, _SHARD_BYTES // max(1, self.sample_bytes))

    @property
    def num_shards(self) -> int:
        """For each view and output."""
        return -(-self.num_samples // self.shard_size)


def cache_layout(forward_teacher: ForwardTeacher, data: Views, num_views: int) -> CacheLayout:
    """The layout of the answers to `data`, found by asking about one sample."""
    answers = forward_teacher(data.batch([0]))
    return CacheLayout(len(data), num_views, tuple(tuple(value.shape[1:]) for value in answers))


def paths_of(folder: Path, layout: CacheLayout) -> Iterator[Path]:
    """All files of the answers."""
    for view in range(layout.num_views):
        for shard in range(layout.num_shards):
            yield from _shard_paths(folder, layout, view, shard)


class CachedOutputs:
    """Reads kept answers; pickles to a worker as a path."""

    def __init__(self, folder: Path, layout: CacheLayout) -> None:
        self.folder, self.layout = folder, layout
        self._shards: dict[Path, npt.NDArray[np.float32]] = {}

    def __call__(self, ids: Sequence[int], view: int) -> tuple[Tensor, ...]:
        """The answers to a view of some samples: float32 (N, ...) for each output."""
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
    """Asks about every view of every sample that `folder` has no answer to, and yields after each
    batch the number of views that are answered by now: whoever stops taking loses one shard.

    `data` is left at the view that came last.
    share: (index, number) of the process that writes each `number`-th shard from `index` on.

    Raises:
        RunError: the disk is full or may not be written to, or the folder holds other answers.
    """
    claim_folder(folder, layout)
    num_done = 0
    for view in range(layout.num_views):
        data.set_epoch(view)
        for shard in range(layout.num_shards):
            start = shard * layout.shard_size
            ids = range(start, min(start + layout.shard_size, layout.num_samples))
            paths = _shard_paths(folder, layout, view, shard)
            is_other_s = (view * layout.num_shards + shard) % share[1] != share[0]
            if is_other_s or all(path.is_file() for path in paths):
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
    """Notes in a folder how the answers in it lie, or compares that with what is noted.

    Raises:
        RunError: they lie in another way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, written = folder / _LAYOUT, json.loads(json.dumps(asdict(layout)))
    del written["num_views"]  # there may come more
    if not path.is_file():
        write_json(path, written)
    elif json.loads(path.read_text(encoding="utf-8")) != written:
        raise _other_answers(folder)


def verify_outputs(
    forward_teacher: ForwardTeacher, data: Views, answers: CachedOutputs, num_samples: int = 8
) -> None:
    """Holds some kept answers against what the teacher says now.

    Raises:
        RunError: they differ by more than rounding: the images or the teacher are other ones.
    """
    data.set_epoch(0)
    ids = np.linspace(0, len(data) - 1, min(num_samples, len(data))).astype(int).tolist()
    for kept, said in zip(answers(ids, 0), forward_teacher(data.batch(ids)), strict=True):
        expected = said.float().cpu()
        if (kept - expected).norm() > _TOLERANCE * expected.norm() + 1e-6:
            raise _other_answers(answers.folder)


def _other_answers(folder: Path) -> RunError:
    return RunError(
        f"reading the teacher's answers in {str(folder)!r}: they are not this teacher's to these"
        " images",
        advice="remove the folder, or name another one (--cache-teacher)",
    )


def _shard_paths(folder: Path, layout: CacheLayout, view: int, shard: int) -> list[Path]:
    """One for each output."""
    return [_shard_path(folder, view, output, shard) for output in range(len(layout.shapes))]


def _shard_path(folder: Path, view: int, output: int, shard: int) -> Path:
    return folder / f"view{view}-output{output}-shard{shard:05}.npy"


def _write(path: Path, values: Tensor) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, values.numpy())
