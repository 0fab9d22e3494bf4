"""`pytest --quick` leaves out what takes long, and fails what is slow elsewhere."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

CONFTEST = "from helpers.quick_loop import *"
BUSY = """
import time

import pytest

def spend(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def test_that_takes_long():
    spend(0.4)

def test_that_does_not():
    spend(0.01)

@pytest.mark.integration
def test_that_is_marked():
    spend(0.4)
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project with a slow and a fast test, and the same two below `integration`."""
    pytester.makeconftest(CONFTEST)
    pytester.makeini("[pytest]\nmarkers = integration")
    pytester.makepyfile(**{"unit/test_busy": BUSY, "integration/test_busy": BUSY})
    return pytester


OPTIONS = ("-n0", "--import-mode=importlib", "-p", "no:cacheprovider", "--quick-seconds=0.2")


def test_a_slow_test_fails_the_quick_loop(project):
    result = project.runpytest_inprocess("--quick", *OPTIONS)

    result.assert_outcomes(passed=1, failed=1, deselected=1)
    result.stdout.fnmatch_lines(["*took 0.* s of processor time, and --quick allows 0.2 s*"])


def test_all_tests_run_without_it_the_long_ones_first(project):
    result = project.runpytest_inprocess("-v", *OPTIONS)

    result.assert_outcomes(passed=6)
    ran = [line.split()[0] for line in result.outlines if "PASSED" in line]
    assert [name.split("/")[0] for name in ran] == ["integration"] * 3 + ["unit"] * 3
    assert ran[3].endswith("test_that_is_marked")
