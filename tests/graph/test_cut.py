"""Cutting: only what is needed, shared modules, and layer names that mean the right node."""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import Residual, Tokens, trained_a_little
from torch import nn

from fitcompress.errors import LayerError
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.cut import cut_program, resolve_layer, split_activation
from fitcompress.graph.lift import build_network, share_leaves
from fitcompress.graph.program import Program, run_program

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def module() -> nn.Module:
    return trained_a_little(Residual())


@pytest.fixture
def program(module) -> Program:
    return capture_module(module, (torch.randn(2, 3, 8, 8),))


def hooked(module: nn.Module, name: str) -> torch.Tensor:
    found = []
    handle = module.get_submodule(name).register_forward_hook(
        lambda _m, _i, out: found.append(out.clone())
    )
    with torch.no_grad():
        module(X)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", ["stem", "block.conv1", "block.conv2", "block", "head"])
def test_a_layer_s_name_means_what_a_hook_on_it_sees(module, program, name):
    node = resolve_layer(program, name)
    (value,) = run_program(cut_program(program, [node], with_output=False), X)
    assert torch.equal(value, hooked(module, name))


def test_a_node_s_name_means_itself_and_a_block_s_name_its_output(program):
    assert resolve_layer(program, "relu") == "relu"
    assert resolve_layer(program, "mine", [("mine", ("conv2d_1", "relu_1"))]) == "relu_1"


def test_unknown_names_come_with_near_misses(program):
    with pytest.raises(LayerError) as caught:
        resolve_layer(program, "block.conv3")
    assert caught.value.code == "layer-unknown"
    assert "block.conv1" in caught.value.advice


def test_a_module_with_several_outputs_is_ambiguous():
    program = capture_module(Tokens().eval(), (torch.randn(2, 3, 8, 8),))
    blocks = [("both", ("transpose", "linear"))]
    with pytest.raises(LayerError) as caught:
        resolve_layer(program, "both", blocks)
    assert caught.value.code == "layer-ambiguous"
    assert caught.value.facts == {"layer": "both", "outputs": ["transpose", "linear"]}


def test_a_cut_holds_only_what_it_needs(program):
    cut = cut_program(program, ["relu"], with_output=False)
    assert {name.split(".")[0] for name in cut.tensors} == {"stem", "norm"}


def test_a_cut_gives_its_values_in_order_and_then_the_output(program):
    cut = cut_program(program, ["conv2d_1", "conv2d"], with_output=True)
    first, second, output = run_program(cut, X)
    assert torch.equal(output, run_program(program, X)[0])
    assert first.shape == second.shape == (3, 8, 8, 8) and not torch.equal(first, second)


def test_cutting_at_an_unknown_value_is_an_error(program):
    with pytest.raises(LayerError) as caught:
        cut_program(program, ["conv3d"], with_output=False)
    assert caught.value.code == "value-unknown" and caught.value.facts == {"name": "conv3d"}
    assert "conv2d" in caught.value.advice


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "flat"])
def test_a_cut_network_is_made_of_the_full_network_s_modules(program, nested):
    members = tuple(
        n.name
        for n in program.graph.nodes
        if n.op == "call_function" and n.meta["owner"].startswith("block")
    )
    network = build_network(program, [("block", members)] if nested else [])
    cut = share_leaves(network, cut_program(program, ["relu_2"], with_output=True))
    tapped, output = cut(X)
    with torch.no_grad():
        assert torch.equal(output, network(X))
    assert cut.get_submodule("block.conv1") is network.get_submodule("block.conv1")
    tapped.sum().backward()
    assert network.get_submodule("stem").weight.grad is not None
    assert network.get_submodule("head").weight.grad is None


def test_loose_parameters_are_shared_too():
    program = capture_module(Tokens().eval(), (torch.randn(2, 3, 8, 8),))
    network = build_network(program)
    cut = share_leaves(network, cut_program(program, ["layer_norm"], with_output=False))
    assert cut.get_parameter("pos_embed") is network.get_parameter("pos_embed")
    assert "head.weight" not in dict(cut.named_parameters())


def test_training_a_cut_trains_the_full_network(program):
    network = build_network(program).train()
    before = network(X).detach().clone()
    cut = share_leaves(network, cut_program(program, ["relu"], with_output=False))
    with torch.no_grad():
        cut.get_submodule("stem").weight.mul_(-1)
    network.eval()
    assert not torch.equal(network(X), before)
    assert not cut.get_submodule("norm").training


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: nn.Softmax(1), "softmax"),
        (lambda: nn.Softmax(-1), "softmax"),
        (lambda: nn.LogSoftmax(1), "log_softmax"),
        (nn.Sigmoid, "sigmoid"),
        (lambda: nn.Softmax(0), ""),
        (nn.ReLU, ""),
    ],
)
def test_a_last_activation_is_recognised_and_taken_off(make, name):
    module = nn.Sequential(nn.Linear(4, 3), make()).eval()
    program = capture_module(module, (torch.randn(2, 4),))
    bare, found = split_activation(program)
    assert found == name
    x = torch.randn(3, 4)
    with torch.no_grad():
        expected = module[0](x) if name else module(x)
    assert torch.equal(run_program(bare, x)[0], expected)
