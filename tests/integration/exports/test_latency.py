"""Latency and memory of models: in which runtimes, in turns, and if an export fails."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.toy_runs import SPEC, toy_teacher, trained_net

from fitcompress.errors import ExportError
from fitcompress.evaluation.benchmark import peak_memory_bytes
from fitcompress.events import Notice
from fitcompress.exporters import latency
from fitcompress.exporters.exportable import Exportable
from fitcompress.exporters.onnx_session import onnx_runner
from fitcompress.exporters.onnx_writer import write_onnx
from fitcompress.graph.lift import build_network
from fitcompress.interface import Interface
from fitcompress.models.model import Model

INTERFACE = Interface(input=SPEC)


def toy_model() -> Model:
    teacher = toy_teacher()
    return Model(teacher.program, build_network(teacher.program), teacher.interface)


def test_both_runtimes_are_timed_at_both_batch_sizes() -> None:
    model = toy_model()
    events: list[Notice] = []

    measured = latency.latencies({"teacher": model, "student": model}, "cpu", events.append)

    assert events == []
    for name in ("teacher", "student"):
        assert list(measured[name]) == ["torch", "onnxruntime"]
        for batches in measured[name].values():
            assert list(batches) == ["1", "32"]
            for batch, times in batches.items():
                assert 5 <= times.n == len(times.samples_ms) <= 300
                expected = 1000 * int(batch) / times.median_ms
                assert times.images_per_s == pytest.approx(expected)
                assert (times.warmup, times.device) == (3, "cpu")


def test_a_file_is_timed_beside_the_model_in_float(tmp_path, monkeypatch) -> None:
    model, file = toy_model(), tmp_path / "student.onnx"
    write_onnx(Exportable(model.network, INTERFACE, torch.zeros(2, *SPEC.shape)), file)
    turns = []

    def opened(path):
        runner = onnx_runner(path)
        return replace(runner, run=lambda images: turns.append(path == file) or runner.run(images))

    monkeypatch.setattr(latency, "onnx_runner", opened)
    times = latency.file_latency(file, model)

    assert list(times) == ["1", "32"]
    for own in times.values():
        low, high = own.speedup_range
        assert 0 < low <= own.speedup <= high and own.samples_ms is None
    turns = turns[-2 * times["32"].n :]
    assert turns == [False, True] * times["32"].n


def test_without_onnx_only_torch_is_timed() -> None:
    measured = latency.latencies({"x": toy_model()}, "cpu", print, in_onnx=False)

    assert list(measured["x"]) == ["torch"]


def test_a_model_that_cannot_be_exported_is_left_out_with_a_notice(monkeypatch) -> None:
    written = []

    def write(source, path):
        written.append(path)
        if len(written) == 1:
            raise TypeError("no such operator\nand a long story")
        write_onnx(source, path)

    monkeypatch.setattr(latency, "write_onnx", write)
    model, events = toy_model(), []

    measured = latency.latencies({"teacher": model, "student": model}, "cpu", events.append)

    assert list(measured["teacher"]) == ["torch"]
    assert list(measured["student"]) == ["torch", "onnxruntime"]
    (notice,) = events
    assert notice.code == "onnx-latency-unknown"
    assert "the teacher's" in notice.message
    assert notice.message.endswith("TypeError: no such operator")


def test_an_onnx_copy_computes_what_the_network_does_and_is_gone_afterwards(monkeypatch) -> None:
    paths = []
    monkeypatch.setattr(latency, "write_onnx", lambda s, p: (paths.append(p), write_onnx(s, p)))
    network = trained_net()

    with latency.onnx_copy(network, INTERFACE) as runner:
        images = runner.make_input(32)
        (outputs,) = runner.run(images)
        with torch.no_grad():
            expected = network(torch.from_numpy(images))
        assert torch.allclose(torch.from_numpy(outputs), expected, atol=1e-4)  # sums reordered

    assert not paths[0].exists()


def test_a_file_that_does_not_run_is_an_export_error(monkeypatch) -> None:
    monkeypatch.setattr(latency, "write_onnx", lambda source, path: path.write_text("no model"))

    with pytest.raises(ExportError) as caught, latency.onnx_copy(trained_net(), INTERFACE):
        pass
    assert caught.value.code == "onnx-file-unreadable"


def test_peak_memory_is_measured_at_each_batch_size() -> None:
    model = toy_model()

    measured = latency.peak_memory(model, "cpu")

    assert measured == {
        str(size): peak_memory_bytes(model.network, torch.zeros(size, *SPEC.shape))
        for size in (1, 32)
    }
    assert measured["1"] < measured["32"]
