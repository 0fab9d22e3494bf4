"""Files that are written whole or not at all, and errors of the disk. Torch-free."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fitcompress.errors import RunError

__all__ = ["atomic_path", "disk_errors", "write_json", "write_text"]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well.

    When it does not, the temporary file is removed and `path` is as it was.

    Raises:
        RunError: no space, or no permission.
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
    """Turns a full disk or a missing permission inside the block into a `RunError`."""
    try:
        yield
    except PermissionError as error:
        raise RunError(
            f"{doing} {str(path)!r}: not permitted", advice="choose a directory you may write to"
        ) from error
    except Exception as error:
        # torch and safetensors report a full disk by exceptions of their own.
        if not _is_disk_full(error):
            raise
        raise RunError(
            f"{doing} {str(path)!r}: no space left on the disk",
            advice="free some space; an unfinished run goes on with --resume",
        ) from error


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON to `path`, atomically.

    Raises:
        RunError: no space, or no permission.
    """
    write_text(path, json.dumps(_json_ready(value), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically.

    Raises:
        RunError: no space, or no permission.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _json_ready(value: object) -> object:
    """`value` with NaN and infinities as None (JSON has no word), paths as text."""
    if isinstance(value, float):
        return value if value - value == 0 else None
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
    words = ("no space left", "disk quota exceeded", "file write failed", "iostream error")
    return any(word in str(error).lower() for word in words)
