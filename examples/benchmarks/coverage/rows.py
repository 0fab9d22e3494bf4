"""CSV files that grow by the rows of one model at a time, so that a stopped sweep can continue."""

from __future__ import annotations

import csv
import gc
import random
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, fields
from fnmatch import fnmatch
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from rich.progress import MofNCompleteColumn, Progress

__all__ = [
    "add_rows",
    "models_like",
    "one_line",
    "random_others",
    "read_rows",
    "smallest_of_each_family",
]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_rows(
    out: Path, kind: type, tasks: Sequence[Callable[[], Sequence[Any]]], *, processes: int
) -> None:
    """Append the rows of each task (of the dataclass `kind`) to `out` as soon as it is done.

    Each process uses one core.
    """
    is_new = not read_rows(out)
    with (
        out.open("a", newline="") as file,
        ProcessPoolExecutor(processes, get_context("spawn"), _one_core) as pool,
        Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress,
    ):
        writer = csv.DictWriter(file, [field.name for field in fields(kind)])
        if is_new:
            writer.writeheader()
        futures = [pool.submit(task) for task in tasks]
        for future in progress.track(as_completed(futures), total=len(futures)):
            writer.writerows(asdict(row) for row in future.result())
            file.flush()


def _one_core() -> None:
    gc.set_threshold(100_000)  # as the fitcompress command does
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")


def models_like(patterns: Sequence[str]) -> list[str]:
    """Names of timm's models that match one of the patterns."""
    return [name for name in timm.list_models() if any(fnmatch(name, p) for p in patterns)]


def smallest_of_each_family(rows: list[dict[str, str]]) -> list[str]:
    """The model with the fewest parameters of each of timm's files, from the rows of `sweep.py`;
    ties are broken by the shortest name.
    """
    smallest: dict[str, tuple[int, int, str]] = {}
    for row in rows:
        candidate = (int(row["params"]), len(row["model"]), row["model"])
        smallest[row["family"]] = min(smallest.get(row["family"], candidate), candidate)
    return [candidate[-1] for candidate in smallest.values()]


def random_others(rows: list[dict[str, str]], count: int) -> list[str]:
    """`count` random models (seed 0) of at most 30 M parameters that are not the smallest of their
    file.
    """
    smallest = smallest_of_each_family(rows)
    rest = sorted(
        row["model"]
        for row in rows
        if row["model"] not in smallest and 0 < int(row["params"]) <= 30_000_000
    )
    return random.Random(0).sample(rest, min(count, len(rest)))


def one_line(error: Exception) -> str:
    """The error on one line, short enough for a table cell."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)}"[:300]
