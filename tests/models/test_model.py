"""Model folders: bit-identical round trips, also in a fresh process, without running code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from helpers.small_nets import Residual, trained_a_little

from fitcompress.errors import RunError, TeacherError
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.lift import build_network
from fitcompress.interface import InputSpec, Interface
from fitcompress.models.model import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    is_model_folder,
    load_model,
    save_model,
)

INTERFACE = Interface(
    input=InputSpec(shape=(3, 8, 8), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0), crop_pct=0.9),
    class_names=("a", "b", "c", "d", "é"),
    activation="softmax",
    origin={"teacher": "x"},
)


@pytest.fixture
def saved(tmp_path):
    program = capture_module(trained_a_little(Residual()), (torch.randn(2, 3, 8, 8),))
    members = tuple(
        n.name
        for n in program.graph.nodes
        if n.op == "call_function" and n.meta["owner"].startswith("block")
    )
    network = build_network(program)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.5)
    save_model(tmp_path, program, network, INTERFACE, [("block", members)])
    return tmp_path, network


def test_a_saved_model_is_loaded(saved):
    folder, network = saved
    model = load_model(folder)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model.network(x), network(x))
    assert model.interface == INTERFACE
    assert model.blocks[0][0] == "block" and not model.network.training
    assert model.program.trainable == {name for name, _ in network.named_parameters()}
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]


def test_saving_a_loaded_model_gives_the_same_bytes(saved, tmp_path_factory):
    folder, _ = saved
    model, again = load_model(folder), tmp_path_factory.mktemp("again")
    save_model(again, model.program, model.network, model.interface, model.blocks)
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.integration
def test_a_fresh_process_reads_it_without_timm_or_pickle(saved):
    folder, network = saved
    code = (
        "import pathlib, pickle, sys, torch\n"
        "from fitcompress.models.model import load_model\n"
        "def refuse(*args, **kwargs): raise SystemExit('something was unpickled')\n"
        "pickle.load = pickle.loads = torch.load = refuse\n"
        f"model = load_model(pathlib.Path({str(folder)!r}))\n"
        "torch.manual_seed(5)\n"
        "torch.set_grad_enabled(False)\n"
        "print(model.network(torch.randn(2, 3, 8, 8)).double().sum().item())\n"
        "assert 'timm' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    torch.manual_seed(5)
    with torch.no_grad():
        expected = network(torch.randn(2, 3, 8, 8)).double().sum().item()
    assert float(done.stdout) == pytest.approx(expected, rel=1e-6)


def test_tensors_that_share_memory_are_saved(tmp_path):
    program = capture_module(trained_a_little(Residual()), (torch.randn(2, 3, 8, 8),))
    shared = program.tensors["norm.weight"]
    program.tensors["norm.bias"] = shared
    save_model(tmp_path, program, {}, INTERFACE)
    assert torch.equal(load_model(tmp_path).program.tensors["norm.bias"], shared)


def test_a_folder_of_someone_else_is_told_apart(saved, tmp_path_factory):
    folder, _ = saved
    other = tmp_path_factory.mktemp("timm")
    (other / CONFIG_NAME).write_text('{"architecture": "resnet18"}')
    assert is_model_folder(folder) and not is_model_folder(other)
    with pytest.raises(TeacherError) as caught:
        load_model(other)
    assert caught.value.code == "model-folder-foreign"
    assert "local-dir:" in caught.value.advice


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(folder, change):
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "code"),
    [
        (lambda f: (f / CONFIG_NAME).unlink(), "model-file-missing"),
        (lambda f: (f / WEIGHTS_NAME).unlink(), "model-file-missing"),
        (lambda f: truncate(f / CONFIG_NAME), "model-file-damaged"),
        (lambda f: truncate(f / WEIGHTS_NAME), "model-file-damaged"),
        (lambda f: (f / WEIGHTS_NAME).write_bytes(b"x"), "model-file-damaged"),
        (lambda f: edit(f, lambda c: c.pop("program")), "model-file-damaged"),
        (lambda f: edit(f, lambda c: c["interface"].pop("input")), "model-file-damaged"),
        (lambda f: edit(f, lambda c: c.update(version=9)), "model-version-unsupported"),
    ],
)
def test_a_damaged_folder_is_an_error(saved, harm, code):
    folder, _ = saved
    harm(folder)
    with pytest.raises(TeacherError) as caught:
        load_model(folder)
    assert caught.value.code == code
    assert caught.value.facts["folder"] == str(folder)


def test_the_target_of_the_output_node_is_not_used(saved):
    folder, network = saved
    edit(folder, lambda c: c["program"]["nodes"][-1].update(target="os.system"))
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(load_model(folder).network(x), network(x))


def test_a_failed_write_leaves_the_old_files(saved, monkeypatch):
    folder, network = saved
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    model = load_model(folder)

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(RunError) as caught:
        save_model(folder, model.program, network, model.interface)
    assert caught.value.code == "disk-full"
    assert sorted(p.name for p in folder.iterdir()) == sorted(before)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
