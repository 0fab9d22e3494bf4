"""How the command begins and ends."""

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
    """The `fitcompress` command."""
    gc.set_threshold(100_000)  # torch's many objects stay; looking through them takes seconds
    if not is_first_process():  # of several, the first one shows results
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    sys.path.append("")  # so that --teacher package.module:factory finds what lies in this folder
    try:
        app(prog_name="fitcompress")
    except SystemExit as ended:
        if not ended.code:
            _leave()
        raise


def _leave() -> NoReturn:
    """Ends the process once all that waits for its end has run: taking torch's objects apart one
    by one would take another two seconds."""
    atexit._run_exitfuncs()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)
