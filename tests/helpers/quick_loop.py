"""Hooks of pytest for `--quick`, the loop of contributors: no integration tests, no slow ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

QUICK_SECONDS = 3.0
"""Most seconds of processor time that a test, its fixtures or its child processes may take under
`--quick`: what takes longer belongs below `tests/integration`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regolden", action="store_true", help="rewrite the golden files, for review")
    parser.addoption(
        "--quick", action="store_true", help="leave out tests/integration; fail slow tests"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Runs what takes long first, so that no process is left with it at the end; `--quick` leaves
    it out.
    """
    takes_long = [item for item in items if "integration" in item.nodeid.split("/")]
    others = [item for item in items if "integration" not in item.nodeid.split("/")]
    if config.getoption("--quick"):
        config.hook.pytest_deselected(items=takes_long)
        items[:] = others
    else:
        items[:] = takes_long + others


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
    seconds = sum(os.times()[:4]) - started
    if item.config.getoption("--quick") and seconds > QUICK_SECONDS:
        pytest.fail(
            f"took {seconds:.1f} s of processor time, and --quick allows {QUICK_SECONDS:g} s: make"
            " it faster, or move it below tests/integration"
        )
