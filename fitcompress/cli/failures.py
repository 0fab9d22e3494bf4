"""Failures as answers: every exception that reaches a command becomes its exit code here.

0 done; 1 a fault of ours (a traceback); 2 a bad flag (Typer's own); 3 something the user can mend;
130 interrupted.
"""

from __future__ import annotations

import errno
import shlex
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from fitcompress.cli import console
from fitcompress.errors import FitcompressError
from fitcompress.rundir import RunDir

__all__ = ["answering_failures", "resumable"]

_USER, _INTERRUPTED = 3, 130

_DISK = {
    errno.ENOSPC: "free some space; an unfinished run goes on with --resume",
    errno.EDQUOT: "free some of your quota; an unfinished run goes on with --resume",
    errno.EROFS: "choose a directory that can be written to",
    errno.EACCES: "choose a directory that you may write to",
}
"""Faults of the disk that a user can mend, and how."""


@contextmanager
def answering_failures(*, debug: bool) -> Iterator[None]:
    """Around a command: what the user can mend is said in one line and a hint, and ends with 3."""
    try:
        yield
    except FitcompressError as error:
        _show_traceback(debug)
        console.show_error(error.message, error.advice)
        raise typer.Exit(_USER) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _show_traceback(debug)
        where = f": {error.filename}" if error.filename else ""
        console.show_error(f"{error.strerror}{where}", _DISK[error.errno])
        raise typer.Exit(_USER) from error
    except KeyboardInterrupt as interrupt:
        console.show_error("interrupted")
        raise typer.Exit(_INTERRUPTED) from interrupt


def _show_traceback(debug: bool) -> None:
    if debug:
        traceback.print_exc()


@contextmanager
def resumable(path: Path, command: str = "distill") -> Iterator[None]:
    """Around work in a directory: an interruption is answered with what continues it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if any(RunDir(path / inner).is_run() for inner in ("", "teacher", "training")):
            again = f"fitcompress {command} --resume --out {shlex.quote(str(path))}"
            console.show_error("interrupted; the checkpoint is kept", f"continue with: {again}")
        else:
            console.show_error("interrupted before anything was written")
        raise typer.Exit(_INTERRUPTED) from interrupt
