"""Processes that begin as copies of one that has imported torch, which takes seconds, and done
nothing else: a process that has run a backward pass cannot be copied.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Forked", "rank_environments", "run_command"]


_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    ["timm", "accelerate", "fitcompress.cli", "fitcompress.run.distill", "helpers.toy_processes"]
)


class Forked:
    """A function that runs in a process of its own.

    env: changes to the environment.
    cwd: its working directory.
    """

    def __init__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        output: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self._output = output
        call = (function, arguments, output, dict(env or {}), cwd)
        self._process = _SERVER.Process(target=_run, args=call)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float = 240) -> int:
        """Waits for the end; the exit status."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still running: {self.output}"
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has printed to stdout and stderr."""
        return self._output.read_text(encoding="utf-8", errors="replace")


def _run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    output: Path,
    env: dict[str, str],
    cwd: Path | None,
) -> None:
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.update(env)
    if cwd is not None:
        os.chdir(cwd)
    function(*arguments)


def run_command(*words: str) -> None:
    """The `fitcompress` command with these words, as the console script runs it."""
    from fitcompress.cli import main

    sys.argv = ["fitcompress", *words]
    main()


def rank_environments(num: int) -> list[dict[str, str]]:
    """What a launcher puts into the environment of each of `num` processes; nothing for one."""
    if num == 1:
        return [{}]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num)}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num)]
