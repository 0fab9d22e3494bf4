"""The command line: Typer commands that each call one public function and show its result.

Imports the public names of `fitcompress`, `recipe`, `report` and the modules directly under
`fitcompress`; never torch, so that `--help` answers at once.
"""

from __future__ import annotations

from fitcompress.cli.commands import app
from fitcompress.cli.entry import main

__all__ = ["app", "main"]
