"""Access to the Hugging Face hub that fails fast and prints nothing.

Without a connection the hub's client retries for a minute and prints warnings. Here the connection
is tested first, for a few seconds at most; without one only the local cache is used.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import warnings
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

__all__ = ["hub_is_reachable", "quiet_hub"]

_PROBE_TIMEOUT_S = 3.0
_REQUEST_TIMEOUT_S = 5
_LOGGERS = ("timm", "huggingface_hub", "httpx", "urllib3")


def hub_is_reachable(timeout_s: float = _PROBE_TIMEOUT_S) -> bool:
    """Whether the hub, or the proxy if one is set, accepts connections."""
    if constants.HF_HUB_OFFLINE:
        return False
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or constants.ENDPOINT)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        with socket.create_connection((address.hostname or "", port), timeout=timeout_s):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def quiet_hub() -> Iterator[None]:
    """Silences the hub's client, shortens its timeouts, and sets it offline if the hub is
    unreachable.
    """
    settings = {
        "HF_HUB_OFFLINE": not hub_is_reachable(),
        "HF_HUB_DISABLE_PROGRESS_BARS": True,
        "HF_HUB_ETAG_TIMEOUT": _REQUEST_TIMEOUT_S,
        "HF_HUB_DOWNLOAD_TIMEOUT": _REQUEST_TIMEOUT_S,
    }
    with _replaced(constants, settings), _silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _replaced(module: Any, values: dict[str, Any]) -> Iterator[None]:
    previous = {name: getattr(module, name) for name in values if hasattr(module, name)}
    try:
        for name in previous:
            setattr(module, name, values[name])
        yield
    finally:
        for name, value in previous.items():
            setattr(module, name, value)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
