"""The command line: Typer commands that each call one public function and print its result.

Imports the public names of `fitcompress`, `recipe`, `report` and the modules directly under
`fitcompress`. Torch is imported inside the commands only, so that `--help` is fast.
"""

from __future__ import annotations

from fitcompress.cli.commands import app
from fitcompress.cli.entry import main

__all__ = ["app", "main"]
