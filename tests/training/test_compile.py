"""Compiled stages compute what plain ones do, and a compiler that fails costs nothing."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from helpers.toy_training import digest, make_distill, run_distill, summary
from torch import nn


@pytest.fixture(autouse=True)
def without_a_c_compiler(monkeypatch):
    """The graph is taken and run as it is, so that the tests need no compiler of the machine."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def messages(events):
    return [event.message for event in events if hasattr(event, "message")]


def without_dropout():
    objective = make_distill()
    objective.trained.upper[0].p = 0.0
    return objective


def test_a_compiled_stage_learns_what_a_plain_one_learns(tmp_path):
    events = []
    plain, _ = run_distill(tmp_path / "a", objective=without_dropout())
    found, _ = run_distill(
        tmp_path / "b", objective=without_dropout(), compile=True, emit=events.append
    )
    assert "stage2: compiled" in messages(events)
    for one, other in zip(plain.history, found.history, strict=True):
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert one["held_out"]["loss"] == pytest.approx(other["held_out"]["loss"], rel=1e-4)


def test_the_networks_that_run_are_the_compiled_ones(tmp_path, monkeypatch):
    calls = []

    def counting(graph, _):
        def run(*inputs):
            calls.append(len(inputs))
            return graph(*inputs)

        return run

    monkeypatch.setattr(nn.Module, "compile", partialmethod(_plain_compile, backend=counting))
    _, objective = run_distill(tmp_path / "a", epochs=1, compile=True)
    assert len(calls) >= 2 * 6, "teacher and student, in each of six steps"
    calls.clear()
    objective.trained(torch.zeros(2, 1, 8, 8))
    assert not calls, "what is measured afterwards runs as it was written"


_plain_compile = nn.Module.compile


def test_a_compiled_run_resumes_to_the_same_bits(tmp_path):
    whole, objective = run_distill(tmp_path / "a", compile=True)
    torch.compiler.reset()
    run_distill(tmp_path / "a", compile=True, resume=True)
    torch.compiler.reset()
    again, other = run_distill(tmp_path / "b", compile=True)
    assert summary(whole, objective.trained) == summary(again, other.trained)


def test_where_the_compiler_fails_it_is_said_and_nothing_is_changed(tmp_path, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no such processor\nmore")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(_plain_compile, backend=failing))
    events = []
    plain, one = run_distill(tmp_path / "a")
    found, other = run_distill(tmp_path / "b", compile=True, emit=events.append)
    (said,) = [message for message in messages(events) if "compiled" in message]
    assert said.startswith("stage2: not compiled: ") and "no such processor" in said
    assert summary(plain, one.trained) == summary(found, other.trained)
    assert digest(one.teacher) == digest(other.teacher)
