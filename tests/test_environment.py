"""What is written down about the machine."""

from __future__ import annotations

import json

import pytest
import torch

from fitcompress.environment import collect_environment, command_line, package_version


def test_environment_names_versions_and_hardware() -> None:
    environment = collect_environment("cpu")
    assert environment["versions"]["torch"] == package_version("torch")
    assert environment["threads"] == torch.get_num_threads()
    assert environment["cpu"]
    json.dumps(environment)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/opt/bin/fitcompress", "plan"], "fitcompress plan"),
        (["/x/fitcompress/__main__.py", "demo", "--out", "a b"], "fitcompress demo --out 'a b'"),
        (["/x/pytest", "-q"], None),
    ],
    ids=["command", "module", "other program"],
)
def test_only_our_own_command_line_is_kept(argv: list[str], expected: str | None) -> None:
    assert command_line(argv) == expected


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert package_version("no-such-distribution") is None
