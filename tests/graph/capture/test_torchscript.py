"""Capture of TorchScript archives: exact, with the original names and a dynamic batch size; and the
private parts of torch that it needs.
"""

from __future__ import annotations

import pytest
import torch
from helpers.small_nets import (
    FixedBatch,
    Residual,
    Tokens,
    frozen,
    quietly,
    reloaded,
    scripted,
    traced,
    trained_a_little,
)
from torch import nn

from fitcompress.errors import CaptureError, TeacherError
from fitcompress.graph.capture.decompositions import DECOMPOSED
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.capture.torchscript import capture_torchscript, load_torchscript
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import Program, run_program
from fitcompress.student.plan import plan_student

SHAPE = (3, 8, 8)


def kinds(program: Program) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if n.op == "call_function"]


WAYS = {
    "traced": traced,
    "scripted": lambda module, _: scripted(module),
    "frozen": frozen,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Residual, Tokens], ids=["residual", "tokens"])
@pytest.mark.parametrize("from_disk", [True, False], ids=["disk", "memory"])
def test_the_program_computes_what_the_archive_computes(make, way, from_disk, tmp_path):
    archive = WAYS[way](trained_a_little(make()), torch.randn(2, *SHAPE))
    if from_disk:
        archive = reloaded(archive, tmp_path / "archive.pt")
    program = capture_torchscript(archive, SHAPE)
    network = build_network(program)
    for batch_size in (1, 2, 5):
        x = torch.randn(batch_size, *SHAPE)
        with torch.no_grad():
            expected = archive(x)
            torch.testing.assert_close(run_program(program, x)[0], expected, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(network(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("way", ["traced", "scripted"])
@pytest.mark.parametrize("make", [Residual, Tokens], ids=["residual", "tokens"])
def test_names_weights_and_calls_are_those_of_eager_code(make, way, tmp_path):
    module = trained_a_little(make())
    archive = reloaded(WAYS[way](module, torch.randn(2, *SHAPE)), tmp_path / "archive.pt")
    program = capture_torchscript(archive, SHAPE)
    eager = capture_module(module, (torch.randn(2, *SHAPE),))
    assert set(program.tensors) == set(eager.tensors)
    assert program.trainable == eager.trainable
    assert set(kinds(program)) - {"aten.sym_size.int"} == set(kinds(eager)) - {"aten.sym_size.int"}


def test_owners_are_found_from_the_names_of_weights():
    program = capture_torchscript(
        traced(trained_a_little(Residual()), torch.randn(2, *SHAPE)), SHAPE
    )
    owners = {node.name: node.meta["owner"] for node in program.graph.nodes}
    assert owners["conv2d_1"] == "block.conv1" and owners["add"] == "block"
    assert owners["relu_2"] == "block" and owners["mean"] == "" and owners["linear"] == "head"


def test_a_frozen_archive_names_its_weights_after_the_calls_that_use_them(tmp_path):
    archive = frozen(trained_a_little(Tokens()), torch.randn(2, *SHAPE))
    program = capture_torchscript(reloaded(archive, tmp_path / "archive.pt"), SHAPE)
    expected = {"conv2d.weight", "conv2d.bias", "blocks.0.layer_norm.weight", "linear_1.weight"}
    assert expected <= program.trainable
    assert program.trainable == set(program.tensors)


def test_a_mask_and_the_mean_of_the_channels_are_no_weights(tmp_path):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
            self.mask = torch.tensor([0.0, -100.0]).repeat(4)

        def forward(self, x):
            return x - self.mean + self.mask

    archive = reloaded(frozen(Masked().eval(), torch.randn(2, *SHAPE)), tmp_path / "a.pt")
    assert not capture_torchscript(archive, SHAPE).trainable


def test_the_archive_is_captured_in_eval_mode_and_left_as_it_was():
    archive = scripted(Residual().train())
    program = capture_torchscript(archive, SHAPE)
    assert archive.training and archive.block.training
    x = torch.randn(3, *SHAPE)
    with torch.no_grad():
        assert torch.equal(run_program(program, x)[0], archive.eval()(x))


def test_control_flow_on_the_training_flag_is_resolved():
    class Flag(nn.Module):
        def forward(self, x):
            if self.training:
                return x * 2
            total = x
            for i in range(3):
                total = total + i
            return total

    program = capture_torchscript(scripted(Flag().eval()), (4,))
    assert kinds(program) == ["aten.add.Tensor"] * 3


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_archive_that_holds_its_batch_size_is_freed(batch_size):
    module = FixedBatch(batch_size).eval()
    program = capture_torchscript(traced(module, torch.randn(batch_size, *SHAPE)), SHAPE)
    x = torch.randn(2 * batch_size, *SHAPE)
    with torch.no_grad():
        expected = torch.cat([module(part) for part in x.split(batch_size)])
    torch.testing.assert_close(run_program(program, x)[0], expected, rtol=1e-5, atol=1e-6)


class Remembers(nn.Module):
    """Keeps what it makes of its weights at its first run."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 4))
        self.register_buffer("index", torch.tensor([3, 1, 0, 2]))
        self.tables = torch.jit.Attribute({}, dict[str, torch.Tensor])

    def forward(self, x):
        key = str(x.device)
        if key not in self.tables:
            self.tables[key] = self.table[:, self.index].sum(0)
        return x * self.tables[key]


@pytest.mark.parametrize("runs_before", [0, 1])
def test_what_an_archive_caches_in_a_run_is_not_part_of_the_program(runs_before, tmp_path):
    archive = reloaded(scripted(Remembers().eval()), tmp_path / "archive.pt")
    x = torch.randn(5, 4)
    for _ in range(runs_before):
        archive(x)
    program = capture_torchscript(archive, (4,))
    assert len(archive.tables) == runs_before
    assert program.trainable == ({"table"} if runs_before == 0 else frozenset())
    assert torch.equal(run_program(program, x)[0], archive(x))


class MadeOfLists(nn.Module):
    """Tensors that the interpreter fills by itself, and one that calls fill."""

    def __init__(self):
        super().__init__()
        self.order = torch.jit.Attribute([3, 1, 0, 2], list[int])

    def forward(self, x):
        filled = torch.empty(x.shape[0], 2)
        filled[:, 0] = x[:, 0]
        filled[:, 1] = 1.0
        table = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).t().reshape(-1)
        return x[:, self.order] * table + filled.sum(1, True)


def test_what_the_interpreter_fills_without_a_call_is_a_literal():
    archive = scripted(MadeOfLists().eval())
    program = capture_torchscript(archive, (4,))
    x = torch.randn(5, 4)
    assert torch.equal(run_program(program, x)[0], archive(x))
    values = {tuple(value.flatten().tolist()) for value in program.tensors.values()}
    assert {(3, 1, 0, 2), (1.0, 3.0, 2.0, 4.0)} <= values


def test_a_graph_that_does_not_reproduce_its_archive_is_refused(monkeypatch):
    def wrong(program, *inputs):
        return tuple(value + 1 for value in run_program(program, *inputs))

    monkeypatch.setattr("fitcompress.graph.capture.torchscript.run_program", wrong)
    with pytest.raises(CaptureError) as caught:
        capture_torchscript(traced(Residual().eval(), torch.randn(2, *SHAPE)), SHAPE)
    assert caught.value.code == "archive-not-reproduced"
    assert ".pt2" in caught.value.advice


def test_a_constant_that_counts_the_batch_is_refused():
    class CountsImages(nn.Module):
        def forward(self, x):
            return x * torch.tensor([float(x.shape[0])])

    with pytest.raises(CaptureError) as caught:
        capture_torchscript(scripted(CountsImages().eval()), (4,))
    assert caught.value.code == "batch-dependent-constant"
    assert caught.value.facts == {"values": [[2.0], [5.0]], "batch_sizes": [2, 5]}


def test_an_archive_with_random_numbers_is_verified_with_the_same_ones():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    archive = traced(Noisy(), torch.randn(2, 4))
    state = torch.random.get_rng_state()
    program = capture_torchscript(archive, (4,))
    assert "aten.randn_like.default" in kinds(program)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_network_whose_calls_depend_on_the_batch_size_is_refused():
    class Depends(nn.Module):
        def forward(self, x):
            return x.relu() if x.shape[0] > 2 else x.tanh()

    with pytest.raises(CaptureError) as caught:
        capture_torchscript(scripted(Depends().eval()), (4,))
    assert caught.value.code == "batch-dependent-calls"
    assert caught.value.facts["calls"] == ["aten.tanh.default", "aten.relu.default"]


def test_a_short_cut_around_a_dropout_is_not_dropped_in_training():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return x + self.drop(x)

    network = build_network(capture_torchscript(scripted(Around().eval()), (64,))).train()
    out = network(torch.ones(2, 64))
    assert set(out.unique().tolist()) == {1.0, 3.0}


def test_writes_through_views_are_functionalized():
    class Writes(nn.Module):
        def forward(self, x):
            y = x.clone()
            y[:, 0] = 0
            return y * 2

    module = Writes()
    program = capture_torchscript(traced(module, torch.randn(2, 4)), (4,))
    x = torch.randn(3, 4)
    assert torch.equal(run_program(program, x)[0], module(x))


class Attention(nn.Module):
    """nn.MultiheadAttention; the output depends on its attention weights too."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.options = options

    def forward(self, x):
        mixed, weights = self.attention(x, x, x, **self.options)
        return mixed if weights is None else mixed + weights.flatten(1).mean(1)[:, None, None]


@pytest.mark.parametrize(
    "options",
    [{"need_weights": False}, {"need_weights": True}, {"average_attn_weights": False}],
    ids=str,
)
def test_fused_attention_is_decomposed_and_can_be_thinned(options):
    torch.manual_seed(0)
    module = Attention(**options).eval()
    archive = traced(module, torch.randn(2, 7, 24))
    assert "_native_multi_head_attention" in str(archive.inlined_graph)
    program = capture_torchscript(archive, (7, 24))

    assert not any("native_multi_head" in str(node.target) for node in program.graph.nodes)
    for x in (torch.randn(3, 7, 24), torch.randn(1, 7, 24)):
        with torch.no_grad():
            expected = module(x)
        torch.testing.assert_close(run_program(program, x)[0], expected)
    thin = plan_student(program, depth_mult=1, width_mult=0.5).program
    assert thin.tensors["attention.in_proj_weight"].shape == (36, 24)


def test_fused_attention_between_two_sequences_or_with_a_mask_is_refused():
    attend = DECOMPOSED[torch.ops.aten._native_multi_head_attention.default]
    x, weight, bias = torch.randn(2, 5, 8), torch.randn(24, 8), torch.randn(24)
    rest = (8, 2, weight, bias, torch.randn(8, 8), torch.randn(8))
    with pytest.raises(CaptureError) as caught:
        attend(x, x.clone(), x, *rest)
    assert caught.value.code == "cross-attention-unsupported"
    with pytest.raises(CaptureError) as caught:
        attend(x, x, x, *rest, torch.zeros(5, 5))
    assert caught.value.code == "attention-mask-unsupported"


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
def test_the_fused_encoder_layer_is_decomposed(norm_first, activation):
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, batch_first=True, norm_first=norm_first, activation=activation
    ).eval()
    archive = traced(layer, torch.randn(2, 5, 8))
    assert "_transformer_encoder_layer_fwd" in str(archive.inlined_graph)
    program = capture_torchscript(archive, (5, 8))
    assert "aten.scaled_dot_product_attention.default" in kinds(program)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        torch.testing.assert_close(run_program(program, x)[0], archive(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dim", [0, None])
@pytest.mark.parametrize("repeats", [[3], [1, 2, 0, 1]], ids=str)
def test_repeats_given_as_a_tensor_are_those_given_as_numbers(dim, repeats):
    again = DECOMPOSED[torch.ops.aten.repeat_interleave.self_Tensor]
    x = torch.randn(4) if dim is None else torch.randn(4, 2)
    counts = torch.tensor(repeats)
    assert torch.equal(again(x, counts, dim), torch.repeat_interleave(x, counts, dim))


def test_a_traced_number_of_repeats_follows_the_batch():
    class Repeats(nn.Module):
        def forward(self, x):
            windows = x.view(-1, 3)
            return x + windows[:: windows.shape[0] // x.shape[0]].sum(1).repeat_interleave(
                windows.shape[0] // x.shape[0], 0
            ).view(x.shape[0], 2).repeat_interleave(3, 1)

    module = Repeats()
    archive = traced(module, torch.randn(1, 6))
    assert "aten::repeat_interleave" in str(archive.inlined_graph)
    program = capture_torchscript(archive, (6,))
    x = torch.randn(4, 6)
    assert torch.equal(run_program(program, x)[0], module(x))


def test_images_of_a_wrong_size_are_an_error_with_the_cause():
    with pytest.raises(CaptureError) as caught:
        capture_torchscript(scripted(FixedBatch(2).eval()), (3, 9, 9))
    assert caught.value.code == "network-run-failed"
    assert caught.value.facts["inputs"] == ["(3, 9, 9) float32"]
    assert "cannot be multiplied" in caught.value.facts["cause"]


def test_an_archive_that_torch_cannot_read_is_an_error(tmp_path):
    path = tmp_path / "broken.pt"
    path.write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(TeacherError) as caught:
        load_torchscript(path)
    assert caught.value.code == "archive-unreadable"
    assert caught.value.facts["path"] == str(path)


def test_torch_has_the_private_parts_that_the_recorder_needs():
    """If a new version of torch breaks capture, look here first."""
    from torch._dispatch.python import enable_python_dispatcher
    from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, PythonKeyTracer

    seen = []

    class Listens(ProxyTorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    archive, x = scripted(nn.Linear(4, 4)), torch.randn(2, 4)
    listener = Listens(PythonKeyTracer(), "real", pre_dispatch=True)
    with quietly(), torch.no_grad(), enable_python_dispatcher(), listener:
        archive(x)
    assert seen == ["aten.linear.default"], "calls must be seen before torch takes them apart"
