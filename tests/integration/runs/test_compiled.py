"""Compiled stages compute the same as others, and a failing compiler changes nothing."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from helpers.toy_training import digest, make_distill, run_distill, summary
from torch import nn

from fitcompress.events import Notice


@pytest.fixture(autouse=True)
def without_a_c_compiler(monkeypatch):
    """Compiles without generating code, so that the tests need no C compiler."""
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


def without_dropout():
    objective = make_distill()
    objective.trained.upper[0].p = 0.0
    return objective


def test_a_compiled_stage_learns_the_same(tmp_path):
    events = []
    plain, _ = run_distill(tmp_path / "a", objective=without_dropout())
    found, _ = run_distill(
        tmp_path / "b", objective=without_dropout(), compile=True, emit=events.append
    )
    assert [event.code for event in events if isinstance(event, Notice)] == ["networks-compiled"]
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
    assert not calls, "networks run uncompiled after the stage"


_plain_compile = nn.Module.compile


def test_a_compiled_run_resumes_to_the_same_bits(tmp_path):
    whole, objective = run_distill(tmp_path / "a", compile=True)
    torch.compiler.reset()
    run_distill(tmp_path / "a", compile=True, resume=True)
    torch.compiler.reset()
    again, other = run_distill(tmp_path / "b", compile=True)
    assert summary(whole, objective.trained) == summary(again, other.trained)


def test_a_failing_compiler_is_reported_and_changes_nothing(tmp_path, monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no such processor\nmore")

    monkeypatch.setattr(nn.Module, "compile", partialmethod(_plain_compile, backend=failing))
    events = []
    plain, one = run_distill(tmp_path / "a")
    found, other = run_distill(tmp_path / "b", compile=True, emit=events.append)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert notice.code == "compilation-failed" and "no such processor" in notice.message
    assert summary(plain, one.trained) == summary(found, other.trained)
    assert digest(one.teacher) == digest(other.teacher)
