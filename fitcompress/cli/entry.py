"""Entry point of the `fitcompress` command: set-up and a fast exit."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from pathlib import Path
from typing import NoReturn

from fitcompress.cli.commands import app
from fitcompress.ranks import is_first_process

__all__ = ["main"]


def main() -> None:
    """Run the `fitcompress` command."""
    gc.set_threshold(100_000)  # collecting torch's many permanent objects takes seconds
    if not is_first_process():  # only one of several processes prints results
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    sys.path.append("")  # so that --teacher package.module:factory finds modules in this folder
    try:
        app(prog_name="fitcompress")
    except SystemExit as stop:
        if not stop.code:
            _exit_at_once()
        raise


def _exit_at_once() -> NoReturn:
    """Ends the process after its exit handlers; deleting torch's objects takes two seconds."""
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
