"""Output and exceptions of third-party converters."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

from fitcompress.errors import ExportError, FitcompressError
from fitcompress.formatting import first_line

__all__ = ["converter_errors", "quiet"]


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses output, warnings and log records inside the block."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def converter_errors(
    doing: str, format_name: str, *, passed: tuple[type[Exception], ...] = (FitcompressError,)
) -> Iterator[None]:
    """Turns any exception in the block into an `ExportError`, because converters have no common
    base class for theirs.

    passed: exceptions that are raised unchanged.

    Raises:
        ExportError: the block failed.
    """
    try:
        yield
    except passed:
        raise
    except Exception as error:
        cause = first_line(error, with_type=True)
        raise ExportError(
            f"{doing}: {cause}", code="converter-failed", format=format_name, cause=cause
        ) from error
