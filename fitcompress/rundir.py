"""The files of a run directory.

    recipe.toml  environment.json  plan.json  events.jsonl  results.json  predictions.safetensors
    checkpoints/{teacher,stage1,stage2,baseline}.pt  teacher/  student/  baseline/
    cache.json  cache/  (cached teacher outputs, removed when the run is finished)
    thumbnails/  exports/  exports.json  report.{txt,json,md,html}  comparison.html

Files are written atomically: a run that is killed leaves the old file or the new one. Only
`events.jsonl` grows and may end in a partial line; readers skip it and the next event starts a new
line.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitcompress.atomic import disk_errors, write_json, write_text
from fitcompress.errors import RunError
from fitcompress.events import Event, Progress, event_record
from fitcompress.ranks import is_first_process

__all__ = ["RunDir"]

_LEFTOVER = ".*.tmp"
"""Temporary files of `atomic_path`."""
_DIRECTORIES = ("checkpoints", "cache", "teacher", "student", "baseline", "thumbnails", "exports")
_FILES = (
    "recipe.toml",
    "environment.json",
    "plan.json",
    "cache.json",
    "events.jsonl",
    "results.json",
    "predictions.safetensors",
    "exports.json",
    "report.txt",
    "report.json",
    "report.md",
    "report.html",
    "comparison.html",
)
_MARK = "recipe.toml"
"""A directory is a run if it holds this file, which is written first."""


@dataclass(frozen=True)
class RunDir:
    """Paths and files of a run directory. `RunDir(path)` does not touch the disk.

    Of several processes only the first one writes; the methods that write do nothing in the others.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, *, force: bool = False, resume: bool = False) -> RunDir:
        """Creates an empty run directory at `path`, or opens an existing one with `resume`.

        force: removes the existing run. Other files are never removed.

        Raises:
            RunError: `path` holds a run and neither `force` nor `resume` is set, or holds files
                that are not part of a run.
        """
        run = cls(Path(path))
        if not is_first_process():
            return run
        with disk_errors("creating the run directory", run.path):
            run._check_is_usable(force=force, resume=resume)
            if run.is_run() and not resume:
                run._clear()
            run._remove_leftovers()
            for name in ("checkpoints", "exports"):
                (run.path / name).mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """Opens the run at `path`.

        Raises:
            RunError: the directory does not exist or holds no run.
        """
        run = cls(Path(path))
        if not run.is_run():
            cause = "holds no run" if run.path.is_dir() else "is not a directory"
            raise RunError(
                f"opening run '{path}': it {cause}",
                code="run-missing",
                advice="Pass the directory given to `fitcompress distill --out`.",
                path=str(path),
            )
        return run

    @classmethod
    def newest(cls, root: Path = Path("runs")) -> RunDir:
        """Opens the most recently active run below `root`.

        Raises:
            RunError: `root` holds no runs.
        """
        runs = [cls(mark.parent) for mark in Path(root).glob(f"*/{_MARK}")]
        if not runs:
            raise RunError(
                f"looking for the newest run: '{root}' holds no runs",
                code="no-runs",
                advice="Pass a run directory, or start a run with `fitcompress distill --teacher"
                " NAME`.",
                path=str(root),
            )
        return max(runs, key=lambda run: (run.last_activity(), str(run.path)))

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def events_path(self) -> Path:
        """Events, one JSON object per line."""
        return self.path / "events.jsonl"

    @property
    def results_path(self) -> Path:
        """Measurements; written last."""
        return self.path / "results.json"

    @property
    def predictions_path(self) -> Path:
        """Outputs and labels on the evaluation split."""
        return self.path / "predictions.safetensors"

    @property
    def teacher_path(self) -> Path:
        """Model folder of the adapted teacher."""
        return self.path / "teacher"

    @property
    def student_path(self) -> Path:
        """Model folder of the student."""
        return self.path / "student"

    @property
    def baseline_path(self) -> Path:
        """Model folder of the student trained without a teacher."""
        return self.path / "baseline"

    @property
    def thumbnails_path(self) -> Path:
        """Directory of the thumbnails in the report."""
        return self.path / "thumbnails"

    @property
    def cache_path(self) -> Path:
        """Directory of the cached teacher outputs."""
        return self.path / "cache"

    @property
    def exports_path(self) -> Path:
        """Directory of the exported files."""
        return self.path / "exports"

    @property
    def exports_json_path(self) -> Path:
        """Records of the exported files and their checks."""
        return self.path / "exports.json"

    def checkpoint_path(self, stage: str) -> Path:
        """Checkpoint of "teacher", "stage1", "stage2" or "baseline"."""
        return self.path / "checkpoints" / f"{stage}.pt"

    def report_path(self, form: str) -> Path:
        """The report as "text", "json", "md" or "html"."""
        return self.path / f"report.{'txt' if form == 'text' else form}"

    def is_run(self) -> bool:
        """Whether the directory holds a run, finished or not."""
        return (self.path / _MARK).is_file()

    def is_finished(self) -> bool:
        """Whether the run is finished: its results are written last."""
        return self.is_run() and self.results_path.is_file()

    def write_json(self, name: str, value: object) -> None:
        """Atomically writes `value` to the file `name` of the run, such as "plan.json"."""
        if is_first_process():
            write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Atomically writes `text` to the file `name` of the run."""
        if is_first_process():
            write_text(self.path / name, text)

    def read_json(self, name: str) -> Any:
        """The content of the file `name` of the run, or None if there is no such file.

        Raises:
            RunError: the file is not valid JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"reading '{path}': not valid JSON ({error})",
                code="file-damaged",
                advice="Start the run again with --force.",
                path=str(path),
            ) from error

    def append_event(self, event: Event) -> None:
        """Appends `event` and the current time to `events.jsonl`. `Progress` is not stored."""
        if isinstance(event, Progress):
            return
        line = json.dumps({"time": round(time.time(), 3), **event_record(event)}, default=str)
        with disk_errors("writing the events", self.events_path):
            start = "\n" if _ends_in_partial_line(self.events_path) else ""
            with self.events_path.open("a", encoding="utf-8") as file:
                file.write(f"{start}{line}\n")
                file.flush()
                os.fsync(file.fileno())

    def read_events(self) -> list[dict[str, Any]]:
        """The stored events in order; partial lines are skipped."""
        if not self.events_path.is_file():
            return []
        lines = self.events_path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = (_parsed_or_none(line) for line in lines)
        return [record for record in records if record is not None]

    def _check_is_usable(self, *, force: bool, resume: bool) -> None:
        name = str(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"creating the run directory '{name}': it is a file",
                code="path-is-file",
                advice="Choose another --out.",
                path=name,
            )
        if self.is_run():
            if not force and not resume:
                raise RunError(
                    f"creating the run directory '{name}': it already holds a run",
                    code="run-exists",
                    advice="Resume it with --resume, replace it with --force, or choose another"
                    " --out.",
                    path=name,
                )
        elif self.path.is_dir() and not self._is_unstarted():
            raise RunError(
                f"creating the run directory '{name}': it holds files that are not part of a run",
                code="folder-not-empty",
                advice="Choose an empty or new directory for --out.",
                path=name,
            )

    def _is_unstarted(self) -> bool:
        """Whether the directory is empty or left by a run killed before it wrote its recipe."""
        return all(
            entry.match(_LEFTOVER)
            or entry.name in _FILES
            or (entry.name in ("checkpoints", "exports") and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    def _clear(self) -> None:
        # The mark is removed last, so that an interrupted removal can be repeated.
        for name in (*_DIRECTORIES, *reversed(_FILES)):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Removes the temporary files of a run that was killed."""
        inner = (e for name in _DIRECTORIES for e in (self.path / name).rglob(_LEFTOVER))
        for entry in [*self.path.glob(_LEFTOVER), *inner]:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def last_activity(self) -> float:
        """Time of the last write, in seconds since the epoch."""
        paths = (self.recipe_path, self.events_path, self.results_path)
        return max(path.stat().st_mtime for path in paths if path.is_file())


def _ends_in_partial_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _parsed_or_none(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    return record if isinstance(record, dict) else None
