"""Atomic file writes, and errors of the disk."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fitcompress.errors import RunError

__all__ = ["atomic_path", "disk_errors", "write_json", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, which is renamed to `path` if the block succeeds.

    Otherwise the temporary file is removed and `path` is unchanged.

    Raises:
        RunError: the disk is full or writing is not permitted.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with disk_errors("writing", path):
        try:
            yield temporary
            _flush_to_disk(temporary)
            temporary.replace(path)
            _flush_to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Converts a full disk or a missing permission into a `RunError`.

    Raises:
        RunError: the disk is full or writing is not permitted.
    """
    try:
        yield
    except PermissionError as error:
        raise RunError(
            f"{doing} '{path}': permission denied",
            code="permission-denied",
            advice="Choose a directory you can write to.",
            path=str(path),
        ) from error
    except Exception as error:
        # torch and safetensors report a full disk with their own exceptions.
        if not _is_disk_full(error):
            raise
        raise RunError(
            f"{doing} '{path}': no space left on the disk",
            code="disk-full",
            advice="Free some space, then continue an unfinished run with --resume.",
            path=str(path),
        ) from error


def write_json(path: Path, value: object) -> None:
    """Atomically writes `value` to `path` as indented JSON; NaN and infinities become null.

    Raises:
        RunError: the disk is full or writing is not permitted.
    """
    write_text(path, json.dumps(_json_ready(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Atomically writes `text` to `path` as UTF-8.

    Raises:
        RunError: the disk is full or writing is not permitted.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json_ready(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json_ready(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_json_ready(part) for part in value]
    return str(value) if isinstance(value, Path) else value


def _flush_to_disk(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # pragma: no cover - Windows cannot open directories
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_disk_full(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    causes = ("no space left", "disk quota exceeded", "file write failed", "iostream error")
    return any(cause in str(error).lower() for cause in causes)
