"""Devices, precisions, memory formats and threads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitcompress.errors import RecipeError
from fitcompress.modes import preserved_modes
from fitcompress.training.device import (
    resolve_device,
    resolve_precision,
    start_accelerator,
    to_channels_last,
    used_threads,
)


@pytest.fixture
def only_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_is_the_cpu_without_a_gpu(only_cpu):
    assert resolve_device("auto") == "cpu"
    assert resolve_precision("auto", "cpu") == "fp32"


def test_auto_is_cuda_if_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert resolve_device("auto") == "cuda"
    assert resolve_precision("auto", "cuda") == "bf16"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_an_unavailable_device_is_refused(only_cpu, name):
    with pytest.raises(RecipeError) as caught:
        resolve_device(name)
    assert caught.value.code == "device-unavailable"
    assert caught.value.facts == {"device": name, "available": ["cpu"]}


@pytest.mark.parametrize(
    "name, device, code", [("fp8", "cuda", "precision-unknown"), ("fp16", "cpu", "fp16-on-cpu")]
)
def test_an_unsupported_precision_is_refused(name, device, code):
    with pytest.raises(RecipeError) as caught:
        resolve_precision(name, device)
    assert caught.value.code == code


def test_accelerators_may_follow_each_other_with_other_precisions():
    assert start_accelerator("cpu", "bf16").mixed_precision == "bf16"
    accelerator = start_accelerator("cpu", "fp32")
    assert accelerator.mixed_precision == "no" and accelerator.device == torch.device("cpu")


def test_modes_are_restored_per_module_even_after_an_error():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()
    with pytest.raises(ValueError, match="inside"), preserved_modes(net.modules()):
        net.train()
        raise ValueError("inside")
    assert net[0].training and not net[1].training and not net[1][0].training


def test_only_weights_of_2d_convolutions_become_channels_last():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.Linear(4, 4))
    before = [parameter.clone() for parameter in net.parameters()]
    to_channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert net[1].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before, strict=True))


def test_auto_is_bf16_on_a_processor_with_a_matrix_unit(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert resolve_precision("auto", "cpu") == "bf16"


@pytest.mark.parametrize(
    "requested, environment, expected",
    [
        (None, {}, 6),
        (None, {"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "1"}, 1),
        (None, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 3),
        (None, {"OMP_NUM_THREADS": "5"}, None),
        (4, {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}, 4),
    ],
)
def test_threads_are_the_available_cores(requested, environment, expected, monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("loky.cpu_count", lambda only_physical_cores: 6)
    before = torch.get_num_threads()
    with used_threads(requested) as num:
        assert num == torch.get_num_threads() == (expected or before)
    assert torch.get_num_threads() == before
