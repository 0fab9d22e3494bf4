"""What all tests share: seeds, one thread, no network, and nothing written into the repository."""

from __future__ import annotations

import errno
import os
import socket
import sys

# Set before torch or a hub client is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest
from helpers.fakes import FakeFunctions, canned_answers
from helpers.quick_loop import (  # noqa: F401 - hooks of pytest
    pytest_addoption,
    pytest_collection_modifyitems,
    pytest_ignore_collect,
    pytest_runtest_call,
    pytest_runtest_setup,
)
from hypothesis import HealthCheck, settings

import fitcompress

# The same examples every time, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "steady",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("steady")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same state of torch's generator, whatever ran before."""
    if "torch" in sys.modules:  # what needs no torch is not to wait for it
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections fail as they do on a machine without a network; local sockets work."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise OSError(errno.ENETUNREACH, f"tests have no network, tried {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    """The test runs in a fresh empty folder, which is given."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pipeline(monkeypatch, in_empty_folder):
    """A recorder in the place of every function of `fitcompress` that a command calls, in an empty
    folder.
    """
    fake = FakeFunctions(canned_answers(in_empty_folder))
    for name in fake.answers:
        real = getattr(fitcompress, name)
        monkeypatch.setattr(fitcompress, name, fake.standing_for(name, real))
    return fake
