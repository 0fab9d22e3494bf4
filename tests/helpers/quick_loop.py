"""Hooks of pytest for `--quick`, the loop of contributors: no integration tests, no slow ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regolden", action="store_true", help="rewrite the golden files, for review")
    parser.addoption(
        "--quick", action="store_true", help="leave out integration tests; fail slow ones"
    )
    parser.addoption(
        "--quick-seconds", type=float, default=3.0, help="processor time a test has under --quick"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`--quick` does not even import what it leaves out."""
    root = config.rootpath
    if not config.getoption("--quick") or not collection_path.is_relative_to(root):
        return None
    return True if "integration" in collection_path.relative_to(root).parts else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs what takes long first, so that no process is left with it at the end; `--quick` leaves
    it out.
    """
    takes_long = [item for item in items if _takes_long(item)]
    others = [item for item in items if not _takes_long(item)]
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=takes_long)
        items[:] = others
    else:
        items[:] = takes_long + others


def _takes_long(item: pytest.Item) -> bool:
    """Tests below `tests/integration`, and single ones elsewhere that are marked so."""
    is_marked = item.get_closest_marker("integration") is not None
    return is_marked or "integration" in item.nodeid.split("/")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    with _quick_enough(item):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _quick_enough(item):
        yield


@contextmanager
def _quick_enough(item: pytest.Item) -> Iterator[None]:
    """Under `--quick` fails what takes too long, in processor time, which does not depend on what
    the machine is doing otherwise.
    """
    started = sum(os.times()[:4])
    yield
    seconds, most = sum(os.times()[:4]) - started, item.config.getoption("--quick-seconds")
    if item.config.getoption("--quick") and seconds > most:
        pytest.fail(
            f"took {seconds:.1f} s of processor time, and --quick allows {most:g} s: make it"
            " faster, mark it as integration, or move it below tests/integration"
        )
