"""Lifting: ordinary modules under the source's names, the same bits, blocks that can be hooked."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.small_nets import Residual, Tokens, quietly, trained_a_little
from torch import nn
from torch.fx import Graph, GraphModule

from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, run_program

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def residual() -> tuple[nn.Module, Program, tuple[tuple[str, tuple[str, ...]], ...]]:
    module = trained_a_little(Residual())
    program = capture_module(module, (torch.randn(2, 3, 8, 8),))
    members = tuple(
        node.name
        for node in program.graph.nodes
        if node.op == "call_function" and node.meta["owner"].split(".")[0] == "block"
    )
    return module, program, (("block", members),)


@pytest.mark.parametrize("make", [Residual, Tokens], ids=["residual", "tokens"])
def test_the_network_computes_the_program_s_bits_under_the_source_s_names(make):
    module = trained_a_little(make())
    program = capture_module(module, (torch.randn(2, 3, 8, 8),))
    network = build_network(program)
    assert set(network.state_dict()) == set(module.state_dict())
    with torch.no_grad():
        assert torch.equal(network(X), run_program(program, X)[0])
        assert torch.equal(network(X), module(X))


@pytest.mark.parametrize("depth", [8, 32])
def test_each_node_is_copied_a_few_times_however_many_blocks_there_are(depth, monkeypatch):
    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(depth)]
    program = capture_module(nn.Sequential(*layers), (torch.randn(2, 4),))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    pairs = zip(calls[::2], calls[1::2], strict=True)
    blocks = [(str(at), (one.name, other.name)) for at, (one, other) in enumerate(pairs)]
    made = []
    create = Graph.create_node
    monkeypatch.setattr(
        Graph, "create_node", lambda *args, **options: made.append(1) or create(*args, **options)
    )
    network = build_network(program, blocks)
    assert all(isinstance(network.get_submodule(name), GraphModule) for name, _ in blocks)
    assert len(made) <= 3 * len(program.graph.nodes)


LAYERS = [
    nn.Conv1d(4, 6, 3, stride=2, padding=1),
    nn.Conv2d(4, 6, (3, 1), padding=(1, 0), dilation=2, groups=2, bias=False),
    nn.Conv2d(4, 4, 3, padding="same"),
    nn.Conv3d(4, 6, 1),
    nn.ConvTranspose1d(4, 6, 3),
    nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2),
    nn.ConvTranspose3d(4, 6, 2),
    nn.Linear(5, 7, bias=False),
    nn.BatchNorm1d(4, eps=1e-3, momentum=0.2),
    nn.BatchNorm2d(4, affine=False),
    nn.BatchNorm3d(4),
    nn.LayerNorm((4, 5), eps=1e-3),
    nn.LayerNorm(5, bias=False),
    nn.RMSNorm(5),
    nn.GroupNorm(2, 4),
    nn.PReLU(4),
    nn.Dropout(0.25),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: str(layer).partition("(")[0])
def test_each_kind_of_layer_comes_back_as_it_was(layer):
    kind = type(layer).__name__
    rank = 3 if "3d" in kind else 2 if "2d" in kind else 1 if "1d" in kind else None
    shape = (4, *(5,) * rank) if rank is not None else (4, 5)
    module = nn.Sequential(nn.Identity(), layer).eval()
    x = torch.randn(2, *shape)
    network = build_network(capture_module(module, (x,)))
    found = network.get_submodule("1")
    assert type(found) is type(layer) and repr(found) == repr(layer)
    with torch.no_grad():
        assert torch.equal(network(x), module(x))


def test_an_embedding_comes_back_as_it_was():
    module = nn.Sequential(nn.Embedding(7, 3)).eval()
    x = torch.randint(0, 7, (2, 4))
    network = build_network(capture_module(module, (x,)))
    assert isinstance(network.get_submodule("0"), nn.Embedding)
    with torch.no_grad():
        assert torch.equal(network(x), module(x))


def test_a_module_used_twice_is_one_module():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(self.fc(x))

    module = Twice().eval()
    network = build_network(capture_module(module, (torch.randn(2, 4),)))
    assert sum(isinstance(child, nn.Linear) for child in network.modules()) == 1
    x = torch.randn(3, 4)
    assert torch.equal(network(x), module(x))


def test_a_weight_that_is_used_in_two_ways_stays_a_plain_parameter():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) + nn.functional.linear(x, self.fc.weight) + self.fc.bias

    module = Shared().eval()
    network = build_network(capture_module(module, (torch.randn(2, 4),)))
    assert not any(isinstance(child, nn.Linear) for child in network.modules())
    assert set(dict(network.named_parameters())) == {"fc.weight", "fc.bias"}
    x = torch.randn(3, 4)
    assert torch.equal(network(x), module(x))


def test_the_network_holds_copies_of_the_tensors():
    _, program, _ = residual()
    before = {name: value.clone() for name, value in program.tensors.items()}
    network = build_network(program).train()
    network(X).sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in program.tensors.items())


def test_training_mode_is_that_of_the_source():
    module, program, blocks = residual()
    network = build_network(program, blocks).train()
    module.train()
    torch.manual_seed(3)
    ours = network(X)
    torch.manual_seed(3)
    assert torch.equal(ours, module(X))
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in network.state_dict().items())


def test_a_block_is_a_module_that_can_be_hooked():
    module, program, blocks = residual()
    network = build_network(program, blocks)
    ours, theirs = [], []
    network.get_submodule("block").register_forward_hook(lambda _m, _i, out: ours.append(out))
    module.block.register_forward_hook(lambda _m, _i, out: theirs.append(out))
    with torch.no_grad():
        assert torch.equal(network(X), module(X))
    assert isinstance(network.get_submodule("block"), GraphModule)
    assert len(ours) == len(theirs) == 1 and torch.equal(ours[0], theirs[0])
    assert set(network.state_dict()) == set(module.state_dict())


@pytest.mark.parametrize("name", ["head", "stem", "elsewhere"])
def test_a_block_under_a_name_that_is_not_its_own_stays_flat(name):
    _, program, ((_, members),) = residual()
    network = build_network(program, ((name, members),))
    assert sum(isinstance(child, GraphModule) for child in network.modules()) == 1
    with torch.no_grad():
        assert torch.equal(network(X), run_program(program, X)[0])


def test_a_copy_is_independent_and_equal():
    _, program, blocks = residual()
    network = build_network(program, blocks)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        assert torch.equal(twin(X), network(X))
        twin.get_submodule("block.conv1").weight.zero_()
        assert not torch.equal(twin(X), network(X))


def test_state_can_be_moved_through_a_state_dict():
    _, program, blocks = residual()
    network = build_network(program, blocks)
    other = build_network(program)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(other(X), network(X))


def test_a_program_without_weights_gives_a_network_without_weights():
    _, program, blocks = residual()
    on_meta = {name: value.to("meta") for name, value in program.tensors.items()}
    network = build_network(
        Program(program.graph, on_meta, program.trainable, program.inputs), blocks
    )
    assert all(value.is_meta for value in network.state_dict().values())
    assert network(X.to("meta")).shape == (3, 5)


def test_tracers_and_exporters_take_the_network():
    _, program, blocks = residual()
    network = build_network(program, blocks)
    with quietly(), torch.no_grad():
        assert torch.equal(torch.jit.trace(network, X)(X), network(X))
        assert torch.equal(torch.compile(network, backend="eager")(X), network(X))
    again = capture_module(network, (torch.randn(2, 3, 8, 8),))
    assert torch.equal(run_program(again, X)[0], run_program(program, X)[0])
    assert set(again.tensors) == set(program.tensors)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_convolution_with_a_kernel_for_each_sample_stays_a_call(batch_size):
    class PerSample(nn.Module):
        def __init__(self):
            super().__init__()
            self.route, self.bank = nn.Linear(3, 4), nn.Parameter(torch.randn(4, 5 * 3 * 3 * 3))

        def forward(self, x):
            size = len(x)
            kernels = (self.route(x.mean((2, 3))) @ self.bank).view(size * 5, 3, 3, 3)
            joined = x.reshape(1, size * 3, *x.shape[2:])
            y = nn.functional.conv2d(joined, kernels, padding=1, groups=size)
            return y.view(size, 5, *x.shape[2:])

    module, x = PerSample().eval(), torch.randn(batch_size, 3, 8, 8)
    network = build_network(capture_module(module, (torch.randn(2, 3, 8, 8),)))
    with torch.no_grad():
        assert torch.equal(network(x), module(x))
    assert not any(isinstance(part, nn.Conv2d) for part in network.modules())
