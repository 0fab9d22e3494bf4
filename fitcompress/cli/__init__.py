"""The command line: Typer commands, one thin function each. Top layer: pipeline, then console.

Nothing here imports torch before a command needs it, so that `--help` and shell completion answer
at once.
"""

from __future__ import annotations

from fitcompress.cli.commands import app
from fitcompress.cli.entry import main

__all__ = ["app", "main"]
