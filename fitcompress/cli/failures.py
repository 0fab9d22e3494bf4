"""Failures: every exception that ends a command becomes a message and an exit code here.

Exit codes: 0 success; 1 internal error, with a traceback; 2 invalid flag (from Typer); 3 error
that the user can fix; 130 interrupted.
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

__all__ = ["reported_failures", "resumable", "show_failure"]

_USER, _INTERRUPTED = 3, 130

_DISK = {
    errno.ENOSPC: ("disk-full", "Free disk space; continue an unfinished run with --resume."),
    errno.EDQUOT: (
        "quota-full",
        "Free disk quota; continue an unfinished run with --resume.",
    ),
    errno.EROFS: ("disk-read-only", "Choose a directory on a writable file system."),
    errno.EACCES: ("permission-denied", "Choose a directory that you may write to."),
}
"""Errors of the file system that a user can fix: code and advice."""


class _Interruption(FitcompressError):
    """Command that the user or a signal interrupted."""


@contextmanager
def reported_failures(*, debug: bool, as_json: bool) -> Iterator[None]:
    """Reports errors that the user can fix and interruptions, then exits with their code."""
    try:
        yield
    except FitcompressError as error:
        raise typer.Exit(show_failure(error, debug=debug, as_json=as_json)) from error
    except OSError as error:
        if error.errno not in _DISK:
            raise
        failure = _disk_failure(error)
        raise typer.Exit(show_failure(failure, debug=debug, as_json=as_json)) from error
    except KeyboardInterrupt as error:
        failure = _Interruption("interrupted", code="interrupted")
        raise typer.Exit(show_failure(failure, debug=debug, as_json=as_json)) from error


def show_failure(error: FitcompressError, *, debug: bool = False, as_json: bool = False) -> int:
    """Print an error and give the command's exit code.

    debug: also print the error's code and, inside an `except` block, the traceback.
    as_json: also print the error to stdout as JSON: {"error": {"code", "message", "advice", ...}}.
    """
    is_interruption = isinstance(error, _Interruption)
    if debug and not is_interruption:
        traceback.print_exc()
    console.show_error(error.message, error.advice, code=error.code if debug else "")
    if as_json:
        console.show_json({"error": error.to_dict()})
    return _INTERRUPTED if is_interruption else _USER


def _disk_failure(error: OSError) -> FitcompressError:
    code, advice = _DISK[error.errno or 0]
    message = error.strerror or str(error)
    if not error.filename:
        return FitcompressError(message, code=code, advice=advice)
    path = str(error.filename)
    return FitcompressError(f"{message}: {path}", code=code, advice=advice, path=path)


@contextmanager
def resumable(path: Path, command: str = "distill") -> Iterator[None]:
    """Turns an interruption of work in a directory into an error with the command to resume it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if any(RunDir(path / inner).is_run() for inner in ("", "teacher", "training")):
            resume = f"fitcompress {command} --resume --out {shlex.quote(str(path))}"
            raise _Interruption(
                "interrupted; the checkpoint is kept",
                code="interrupted",
                advice=f"Continue with `{resume}`.",
                command=resume,
            ) from interrupt
        raise _Interruption(
            "interrupted before anything was written", code="interrupted"
        ) from interrupt
