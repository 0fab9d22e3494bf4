"""The run directory: where everything of a run lies, and how it is written.

Layer: errors and events; no torch.

    recipe.toml  environment.json  plan.json  events.jsonl  results.json  predictions.safetensors
    checkpoints/{teacher,stage1,stage2,baseline}.pt  teacher/  student/  baseline/
    cache.json  cache/  (the teacher's answers, until the run is finished)
    thumbnails/  exports/  exports.json  report.{txt,json,md,html}  comparison.html

A file gets its name only once it is whole and on the disk, so a run that is killed at any moment
leaves either the old file or the new one. The one file that grows, `events.jsonl`, may end in half
a line: readers skip it, the next event starts a new one.
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
"""A directory that holds this file is a run: it is the first one written."""


@dataclass(frozen=True)
class RunDir:
    """The places in a run directory. Making one touches nothing on disk; `create` and `open` do.

    Of several processes only the first writes; for the others all that writes does nothing.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, *, force: bool = False, resume: bool = False) -> RunDir:
        """The run directory at `path`, empty; with `resume`, as it was left.

        With `force` it is emptied of the old run. Only files of a run are ever removed.

        Raises:
            RunError: `path` holds a run and neither was asked for, or holds something else.
        """
        run = cls(Path(path))
        if not is_first_process():
            return run
        with disk_errors("making the run directory", run.path):
            run._check_is_usable(force=force, resume=resume)
            if run.is_run() and not resume:
                run._clear()
            run._remove_leftovers()
            for name in ("checkpoints", "exports"):
                (run.path / name).mkdir(parents=True, exist_ok=True)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """The run at `path`.

        Raises:
            RunError: there is none.
        """
        run = cls(Path(path))
        if not run.is_run():
            what = "holds no run" if run.path.is_dir() else "is no directory"
            raise RunError(
                f"opening the run {str(path)!r}: it {what}",
                advice="name the directory given to `fitcompress distill --out`",
            )
        return run

    @classmethod
    def newest(cls, root: Path = Path("runs")) -> RunDir:
        """The run below `root` in which something happened last.

        Raises:
            RunError: there is none.
        """
        runs = [cls(mark.parent) for mark in Path(root).glob(f"*/{_MARK}")]
        if not runs:
            raise RunError(
                f"looking for the newest run: there is none in {str(root)!r}",
                advice="name a run, or make one with `fitcompress distill --teacher NAME`",
            )
        return max(runs, key=lambda run: (run.last_activity(), str(run.path)))

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def environment_path(self) -> Path:
        """Versions and hardware."""
        return self.path / "environment.json"

    @property
    def plan_path(self) -> Path:
        """What the student is."""
        return self.path / "plan.json"

    @property
    def events_path(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def results_path(self) -> Path:
        """What was measured; written when all is done."""
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
        """Model folder of the same student trained without a teacher."""
        return self.path / "baseline"

    @property
    def thumbnails_path(self) -> Path:
        """Directory of the small pictures in the report."""
        return self.path / "thumbnails"

    @property
    def cache_path(self) -> Path:
        """Directory of the teacher's answers."""
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
        """Whether the run came to its end: its results are written last."""
        return self.is_run() and self.results_path.is_file()

    def write_json(self, name: str, value: object) -> None:
        """Write `value` to the file `name` ("plan.json") of the run, atomically."""
        if is_first_process():
            write_json(self.path / name, value)

    def write_text(self, name: str, text: str) -> None:
        """Write `text` to the file `name` of the run, atomically."""
        if is_first_process():
            write_text(self.path / name, text)

    def read_json(self, name: str) -> Any:
        """What the file `name` of the run holds, or None when it is not there.

        Raises:
            RunError: the file is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(
                f"reading {str(path)!r}: it is not JSON ({error})",
                advice="the file was changed or damaged; run again with --force",
            ) from error

    def append_event(self, event: Event) -> None:
        """Add `event` with the time of day to `events.jsonl`. `Progress` is not stored."""
        if isinstance(event, Progress):
            return
        line = json.dumps({"time": round(time.time(), 3), **event_record(event)}, default=str)
        with disk_errors("writing the events", self.events_path):
            start = "\n" if _ends_in_half_a_line(self.events_path) else ""
            with self.events_path.open("a", encoding="utf-8") as file:
                file.write(f"{start}{line}\n")
                file.flush()
                os.fsync(file.fileno())

    def read_events(self) -> list[dict[str, Any]]:
        """The stored events in order, without lines that a kill cut off."""
        if not self.events_path.is_file():
            return []
        lines = self.events_path.read_text(encoding="utf-8", errors="replace").splitlines()
        records = (_parsed_or_none(line) for line in lines)
        return [record for record in records if record is not None]

    def _check_is_usable(self, *, force: bool, resume: bool) -> None:
        name = str(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise RunError(
                f"making the run directory {name!r}: it is a file", advice="choose another --out"
            )
        if self.is_run():
            if not force and not resume:
                raise RunError(
                    f"making the run directory {name!r}: it already holds a run",
                    advice="go on with --resume, replace it with --force, or choose another --out",
                )
        elif self.path.is_dir() and not self._holds_only_ours():
            raise RunError(
                f"making the run directory {name!r}: it holds files that are not of a run",
                advice="choose an empty or new directory for --out",
            )

    def _holds_only_ours(self) -> bool:
        """Whether only beginnings are here, of a run killed before its recipe was written."""
        return all(
            entry.match(_LEFTOVER)
            or entry.name in _FILES
            or (entry.name in ("checkpoints", "exports") and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    def _clear(self) -> None:
        # The mark goes last: what is cut off half-way can be cleared again.
        for name in (*_DIRECTORIES, *reversed(_FILES)):
            entry = self.path / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """What a kill cut off, wherever a run writes."""
        inner = (e for name in _DIRECTORIES for e in (self.path / name).rglob(_LEFTOVER))
        for entry in [*self.path.glob(_LEFTOVER), *inner]:
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def last_activity(self) -> float:
        """When something was written last, in seconds since the epoch."""
        paths = (self.recipe_path, self.events_path, self.results_path)
        return max(path.stat().st_mtime for path in paths if path.is_file())


def _ends_in_half_a_line(path: Path) -> bool:
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
