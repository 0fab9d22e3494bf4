"""Every tiny model of timm from every kind of source: the lifted network is bit-identical.

Sources are the module itself, traced, scripted and frozen archives, and a `.pt2` file.
"""

from __future__ import annotations

import pytest
import timm
import torch
from helpers.small_nets import (
    export_to,
    frozen,
    quietly,
    reloaded,
    scripted,
    traced,
    trained_a_little,
)
from helpers.tiny_zoo import MODELS, OWN_SIZE, SIDE
from torch import nn

from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.capture.exported import capture_exported
from fitcompress.graph.capture.torchscript import capture_torchscript
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, run_program
from fitcompress.graph.shapes import propagate_shapes

ARCHIVES = ("traced", "scripted", "frozen")
"""By default each model is tested with one of them in turn; with -m slow, with all."""

SOURCES = [
    pytest.param(name, source, marks=pytest.mark.slow)
    if source in ARCHIVES and source != ARCHIVES[number % 3]
    else pytest.param(name, source)
    for number, name in enumerate(MODELS)
    for source in ("timm", *ARCHIVES, "pt2")
]


def model_and_size(name: str, **options) -> tuple[nn.Module, int]:
    torch.manual_seed(0)
    config = timm.get_pretrained_cfg(name)
    own = config.input_size[-1]
    if name in OWN_SIZE:
        return trained_a_little(timm.create_model(name, **options)), own
    if config.fixed_input_size or "vit" in name:
        return trained_a_little(timm.create_model(name, img_size=SIDE, **options)), SIDE
    return trained_a_little(timm.create_model(name, **options)), SIDE


def captured(name: str, source: str, tmp_path) -> tuple[nn.Module, Program, int]:
    """The source in torch, its program, and its input size."""
    module, side = model_and_size(name, scriptable=True if source == "scripted" else None)
    example = torch.randn(2, 3, side, side)
    if source == "timm":
        return module, capture_module(module, (example,)), side
    if source == "pt2":
        with quietly():
            exported = torch.export.load(export_to(tmp_path / "model.pt2", module, example))
        return module, capture_exported(exported), side
    make = {
        "traced": lambda: traced(module, example),
        "scripted": lambda: scripted(module),
        "frozen": lambda: frozen(module, example),
    }
    archive = reloaded(make[source](), tmp_path / "model.pt")
    return archive, capture_torchscript(archive, (3, side, side)), side


@pytest.mark.parametrize(("name", "source"), SOURCES)
def test_the_lifted_network_has_the_outputs_of_the_source(name, source, tmp_path):
    module, program, side = captured(name, source, tmp_path)
    network = build_network(program)
    for batch_size in (2, 3):
        x = torch.randn(batch_size, 3, side, side)
        with torch.no_grad():
            expected = module(x)
            lifted, reference = network(x), run_program(program, x)[0]
        # Exact, except for archives: they may use other kernels, and attention biases of frozen
        # ones become parameters, for which torch uses another attention kernel.
        bound = 1e-6 * expected.abs().max().item()
        assert (lifted - reference).abs().max().item() <= (bound if source == "frozen" else 0)
        assert (lifted - expected).abs().max().item() <= (bound if source in ARCHIVES else 0)
    propagate_shapes(program, 1)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_and_calls_are_the_same_without_weights(name):
    module, side = model_and_size(name)
    program = capture_module(module, (torch.randn(2, 3, side, side),))
    bare = capture_module(module.to("meta"), (torch.empty(2, 3, side, side, device="meta"),))
    assert str(bare.graph) == str(program.graph)
