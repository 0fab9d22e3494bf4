"""Capture of modules and exported programs: exact, functional, independent of devices, and without
side effects on the module.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.small_nets import FixedBatch, Residual, Tokens, quietly, trained_a_little
from torch import nn
from torch._ops import OpOverload

from fitcompress.errors import CaptureError, ObstacleError
from fitcompress.graph.capture.eager import capture_module
from fitcompress.graph.capture.exported import capture_exported
from fitcompress.graph.lift import build_network
from fitcompress.graph.program import run_program
from fitcompress.graph.shapes import propagate_shapes
from fitcompress.modes import evaluating


class InPlace(nn.Module):
    """Changes values in place in every way that has a simple out-of-place form."""

    def forward(self, x):
        y = x * 2
        y.add_(x).mul_(0.5)
        z = y + 1
        z.clamp_(min=0)
        w = torch.zeros_like(z)
        w.copy_(z)
        return y + w


class WritesThroughDropout(nn.Module):
    """In eval mode a dropout returns its input itself, so both names see the change."""

    def forward(self, x):
        y = x * 2
        z = nn.functional.dropout(y, 0.5, training=False)
        z.clamp_(min=0)
        return y + z


class WritesThroughView(nn.Module):
    def forward(self, x):
        y = x.clone()
        y[:, 0] = 0
        y[:, 1].mul_(3)
        return y


class MixedTypes(nn.Module):
    def forward(self, x):
        y = x.half()
        y += x
        return y.float()


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return x * self.count


class Constants(nn.Module):
    """Makes tables on the fly, on a device that it names."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        rows = torch.arange(4, device=x.device, dtype=x.dtype)
        table = torch.stack(torch.meshgrid(rows, rows, indexing="ij")).sum(0)
        rest = torch.zeros(x.shape[0], 4, 4, device=x.device)
        moved = torch.arange(4).to(x.device, x.dtype)
        return x + table + rest + torch.tensor([1.0, 2.0, 3.0, 4.0]) * moved


class NoGradRegion(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            y = x * 2
        return y + x


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Several(nn.Module):
    def forward(self, x):
        return {"a": x + 1, "b": [x * 2, None]}


CASES = [InPlace, WritesThroughView, MixedTypes, Constants, NoGradRegion, Tied]


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_program_computes_what_the_module_computes(make, batch_size):
    module, shape = make().eval(), (4,) if make is Tied else (4, 4)
    program = capture_module(module, (torch.randn(2, *shape),))
    x = torch.randn(batch_size, *shape)
    with torch.no_grad():
        assert torch.equal(run_program(program, x)[0], module(x.clone()))


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_the_program_is_functional_and_bound_to_no_device(make):
    shape = (2, 4) if make is Tied else (2, 4, 4)
    program = capture_module(make(), (torch.randn(shape),))
    for node in program.graph.nodes:
        if isinstance(node.target, OpOverload):
            assert not node.target._schema.is_mutable, node.target
            assert "device" not in node.kwargs


class Caches(nn.Module):
    """Keeps tables of an earlier run, as an attribute and in a dictionary."""

    def __init__(self):
        super().__init__()
        self.last, self.tables = None, {}

    def forward(self, x):
        if self.last is None or self.last.shape[0] != x.shape[0]:
            self.last = torch.full((x.shape[0], 4), 2.0, device=x.device)
        if "ones" not in self.tables:
            self.tables["ones"] = x.new_ones(4) + x.mean() * 0
        return x * self.last + self.tables["ones"]


def test_what_a_run_caches_affects_neither_the_next_run_nor_the_module():
    module = Caches().eval()
    program = capture_module(module, (torch.randn(2, 4),))
    assert module.last is None and not module.tables
    x = torch.randn(5, 4)
    assert torch.equal(run_program(program, x)[0], module(x))


def test_a_cached_tensor_without_values_is_refused():
    module = Caches().eval()
    module.tables["ones"] = torch.ones(4, device="meta")
    with pytest.raises(CaptureError) as caught:
        capture_module(module, (torch.randn(2, 4),))
    assert caught.value.code == "tensor-from-earlier-run"
    assert caught.value.facts == {"tensor": "tables_0"}


def test_a_branch_on_values_is_refused_with_its_line():
    class Branches(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(ObstacleError) as caught:
        capture_module(Branches(), (torch.randn(2, 4),))
    assert caught.value.code == "value-dependent-network"
    assert caught.value.facts == {"call": "aten.is_nonzero.default", "line": "if x.sum() > 0:"}


def test_a_copy_over_a_whole_tensor_has_gradients():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(4, 4)

        def forward(self, x):
            buffer = torch.zeros(x.shape[0], 4, dtype=torch.float64)
            buffer.copy_(self.map(x))
            return buffer * 2

    module = Overwrites()
    program = capture_module(module, (torch.randn(2, 4),))
    network, x = build_network(program), torch.randn(5, 4)
    found = network(x)
    assert torch.equal(found, module(x))
    found.sum().backward()
    gradient = network.get_parameter("map.weight").grad
    torch.testing.assert_close(gradient, 2 * x.sum(0).expand(4, 4))


def test_one_hot_rows_of_a_known_number_of_classes_are_captured():
    class OneHot(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.num_classes = num_classes

        def forward(self, x):
            return nn.functional.one_hot(x, self.num_classes).float()

    words = torch.tensor([[0, 2, 1], [1, 1, 0]])
    program = capture_module(OneHot(4), (words,))
    assert torch.equal(run_program(program, words)[0], OneHot(4)(words))
    with pytest.raises(ObstacleError) as caught:
        capture_module(OneHot(-1), (words,))
    assert caught.value.code == "value-dependent-network"
    assert caught.value.facts["call"] == "aten.one_hot.default"


def test_numbers_that_do_not_come_from_the_input_are_constants():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor([2.0, 3.0]))

        def forward(self, x):
            rates = torch.linspace(0, 1, 3, device=x.device).tolist()
            return x * float(self.scale.max()) + rates[1]

    module, x = Reads().eval(), torch.randn(3, 4)
    program = capture_module(module, (torch.randn(2, 4),))
    assert torch.equal(run_program(program, x)[0], module(x))


def test_a_constant_that_counts_the_batch_is_refused():
    class Counts(nn.Module):
        def forward(self, x):
            return x * torch.tensor([float(len(x))])

    with pytest.raises(CaptureError) as caught:
        capture_module(Counts(), (torch.randn(2, 4),))
    assert caught.value.code == "batch-dependent-constant"


def test_a_write_through_a_dropout_is_captured():
    module, x = WritesThroughDropout().eval(), torch.randn(2, 4, 4)
    program = capture_module(module, (torch.randn(2, 4, 4),))
    assert torch.equal(run_program(program, x)[0], module(x.clone()))


def test_an_exported_write_through_a_dropout_is_captured_or_refused_never_lost():
    module, x = WritesThroughDropout().eval(), torch.randn(2, 4, 4)
    with quietly():
        exported = torch.export.export(module, (torch.randn(2, 4, 4),))
    if torch.__version__ < "2.12":
        with pytest.raises(CaptureError) as caught:
            capture_exported(exported)
        assert caught.value.code == "view-write-unsupported"
    else:
        assert torch.equal(run_program(capture_exported(exported), x)[0], module(x.clone()))


def test_the_input_of_the_caller_is_not_changed():
    program = capture_module(InPlace(), (torch.randn(2, 4, 4),))
    x = torch.randn(2, 4, 4)
    before = x.clone()
    run_program(program, x)
    assert torch.equal(x, before)


def test_tables_become_buffers_and_no_calls_remain():
    program = capture_module(Constants(), (torch.randn(2, 4, 4),))
    assert sorted(program.tensors) == ["constant_0", "constant_1"]
    assert not program.trainable
    kinds = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert not any("arange" in kind or "meshgrid" in kind for kind in kinds)


def test_tied_weights_have_one_name():
    program = capture_module(Tied(), (torch.randn(2, 4),))
    assert len(program.tensors) == 3
    assert sum(node.op == "get_attr" for node in program.graph.nodes) == 3


def test_a_network_with_memory_is_refused():
    with pytest.raises(CaptureError) as caught:
        capture_module(Counter(), (torch.randn(2, 4, 4),))
    assert caught.value.code == "network-keeps-state"
    assert caught.value.facts == {"tensor": "count"}


def test_outputs_of_any_structure_become_a_flat_tuple():
    program = capture_module(Several(), (torch.randn(2, 4),))
    a, b = run_program(program, torch.ones(3, 4))
    assert torch.equal(a, torch.full((3, 4), 2.0)) and torch.equal(b, torch.full((3, 4), 2.0))


def test_names_owners_and_trainable_weights_are_the_source_s():
    module = trained_a_little(Residual())
    program = capture_module(module, (torch.randn(2, 3, 8, 8),))
    assert program.trainable == {name for name, _ in module.named_parameters()}
    counters = {name for name in module.state_dict() if name.endswith("num_batches_tracked")}
    assert set(program.tensors) == set(module.state_dict()) - counters
    owners = {node.name: node.meta["owner"] for node in program.graph.nodes}
    assert owners["conv2d_1"] == "block.conv1" and owners["add"] == "block"
    assert owners["linear"] == "head" and owners["x"] == ""


def test_dropout_that_drops_nothing_is_left_out_and_the_other_stays():
    module = nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5))
    program = capture_module(module, (torch.randn(2, 4),))
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [node.args[1:] for node in calls] == [(0.5, False)]


def test_the_module_is_left_as_it_was_found():
    module = Residual().train()
    module.norm.eval()
    flags = [child.training for child in module.modules()]
    state = {name: value.clone() for name, value in module.state_dict().items()}
    capture_module(module, (torch.randn(2, 3, 8, 8),))
    assert [child.training for child in module.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_training_flags_are_restored_after_an_error():
    module = Residual().train()
    with pytest.raises(ValueError), evaluating(module):
        assert not module.block.training
        raise ValueError
    assert module.block.training and module.training


def test_a_module_on_the_meta_device_gives_the_same_graph():
    real = capture_module(Tokens().eval(), (torch.randn(2, 3, 8, 8),))
    with torch.device("meta"):
        module = Tokens().eval()
    meta = capture_module(module, (torch.empty(2, 3, 8, 8, device="meta"),))
    assert str(meta.graph) == str(real.graph)
    assert propagate_shapes(meta, 3) == propagate_shapes(real, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 6])
@pytest.mark.parametrize("make", [FixedBatch, None], ids=["view", "tokens"])
def test_a_fixed_batch_size_is_freed(make, batch_size):
    module = (Tokens() if make is None else make(batch_size)).eval()
    example = torch.randn(batch_size, 3, 8, 8)
    with quietly():
        program = capture_exported(torch.export.export(module, (example,)))
    x = torch.randn(3 * batch_size, 3, 8, 8)
    with torch.no_grad():
        expected = torch.cat([module(part) for part in x.split(batch_size)])
    torch.testing.assert_close(run_program(program, x)[0], expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(run_program(program, example)[0], module(example))


def test_a_batch_that_mixes_its_images_cannot_be_freed():
    class Mixes(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1) + x.reshape(-1).sum() + torch.ones(2, 4)

    with quietly():
        exported = torch.export.export(Mixes(), (torch.randn(2, 4),))
    with pytest.raises(CaptureError) as caught:
        capture_exported(exported)
    assert caught.value.code == "batch-size-fixed"
    assert caught.value.facts["batch_size"] == 2


def test_an_error_of_the_module_is_a_capture_error():
    with pytest.raises(CaptureError) as caught:
        capture_module(nn.Linear(3, 3), (torch.randn(2, 4),))
    assert caught.value.code == "network-run-failed"
    assert caught.value.facts["inputs"] == ["(4,) float32"]


def through_slices(x):
    y = x.clone()
    y[:, 1:, ::2] += 1
    y[:, 0] = y[:, 1] * 2
    return y


def through_a_view_and_back(x):
    y = x * 2
    flat, turned = y.view(len(x), -1), y.transpose(1, 2)
    flat[:, 3:7].mul_(3)
    turned.add_(1)
    return y + flat.view_as(y) + turned.transpose(1, 2)


def the_whole_seen_through_its_parts(x):
    y = x.clone()
    row, rest = y[:, 0], y.permute(2, 0, 1)
    y.relu_()
    return torch.cat([row.flatten(1), rest.permute(1, 2, 0).flatten(1)], 1)


def a_copy_is_no_view(x):
    y = x.transpose(1, 2)
    z = y.reshape(len(x), 16)
    z.zero_()
    return y.flatten(1) + z


def a_mask_made_on_the_way(x):
    mask = torch.zeros(4, 4)
    mask[1:3, :2] = 1
    mask[0].fill_(2)
    mask.t()[3] = 4
    return x * mask


WRITES = (
    through_slices,
    through_a_view_and_back,
    the_whole_seen_through_its_parts,
    a_copy_is_no_view,
    a_mask_made_on_the_way,
)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = nn.Identity()
        self.function = function

    def forward(self, x):
        return self.function(self.inner(x + 0))


@pytest.mark.parametrize("function", WRITES, ids=lambda function: function.__name__)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_writes_through_views_reach_all_that_share_the_memory(function, batch_size):
    module, x = Function(function).eval(), torch.randn(batch_size, 4, 4)
    program = capture_module(module, (torch.randn(2, 4, 4),))
    assert torch.equal(run_program(program, x)[0], module(x))
    for node in program.graph.nodes:
        assert not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable)


def literal_written_to(x):
    t = torch.tensor([1.0, 2.0, 3.0, 4.0])
    t += 1
    t[0] = 9
    return x * t


def array_written_to(x):
    t = torch.from_numpy(np.arange(4, dtype=np.float32))
    a = x * t
    t.mul_(2)
    return a + t


def pieces_of_a_chunk(x):
    a, b = (x * 1).chunk(2, 1)
    return nn.functional.silu(a, inplace=True) * b


def pieces_of_a_split(x):
    y = x * 1
    a, b, c = y.split([1, 2, 1], 2)
    b.add_(1)
    return torch.cat([y, a + c, b], 2)


def rows_unbound(x):
    y = x * 1
    rows = y.unbind(1)
    rows[2].mul_(3)
    return y + rows[0][:, None]


def narrowed_and_turned(x):
    y = x * 1
    y.narrow(1, 1, 2).add_(1)
    y.movedim(1, 2)[:, :, 0].zero_()
    y.mT.mul_(2)
    y.diagonal(dim1=1, dim2=2).fill_(7)
    return y


def shape_changed_in_place(x):
    y = x * 1
    z = y[:, :2]
    y.unsqueeze_(1)
    z.add_(1)
    return y * 1


def seen_as_another_dtype(x):
    y = x * 1
    i = (y * 8).to(torch.int32)
    i.bitwise_and_(7)
    return y + i


def seen_through_einsum(x):
    y = x * 1
    e = torch.einsum("bij->bji", y)
    e.add_(1)
    return y


def broadcast_together(x):
    y = x * 1
    z = torch.broadcast_tensors(y, x)[0]
    z.add_(1)
    return y


def dropout_of_maps(x):
    y = x * 1
    nn.functional.feature_alpha_dropout(y, 0.3, False).add_(1)
    nn.functional.dropout1d(y, 0.3, False).mul_(2)
    return y


def compared_in_place(x):
    y = x * 1
    return y.gt_(0) + y


def divided_in_place(x):
    return (x * 8).floor_divide_(torch.full((4,), 3.0))


def picked_by_lists(x):
    return x[:, [2, 0]] + x[:, [1, 3]] + x[:, [0, 1], [2, 3]][:, None, :1]


def made_where_the_input_is(x):
    t = torch.tensor([1.0, 2.0, 3.0, 4.0], device=x.device)
    return x * t + x.new_tensor([1, 2, 3, 4]) + torch.tensor(2.5, device=x.device)


def on_the_device(x):
    return x if x.device.type == "cpu" else x * 2


MORE = (
    literal_written_to, array_written_to, pieces_of_a_chunk, pieces_of_a_split, rows_unbound,
    narrowed_and_turned, shape_changed_in_place, seen_as_another_dtype, dropout_of_maps,
    compared_in_place, divided_in_place,
    picked_by_lists, made_where_the_input_is, on_the_device,
)  # fmt: skip


@pytest.mark.parametrize("function", MORE, ids=lambda function: function.__name__)
def test_common_idioms_are_captured_exactly(function):
    module = Function(function).eval()
    program = capture_module(module, (torch.randn(2, 4, 4),))
    for batch_size in (1, 2, 5):
        x = torch.randn(batch_size, 4, 4)
        torch.testing.assert_close(run_program(program, x)[0], module(x), rtol=0, atol=0)


def through_strides(x):
    y = x * 1
    y.as_strided((len(x), 2, 2), (16, 1, 1)).zero_()
    return y


def a_float_seen_as_bits(x):
    y = x * 1
    y.view(torch.int32).bitwise_and_(0x7FFFFFFF)
    return y


UNSUPPORTED = (through_strides, a_float_seen_as_bits, seen_through_einsum, broadcast_together)


@pytest.mark.parametrize("function", UNSUPPORTED, ids=lambda function: function.__name__)
def test_a_write_that_cannot_be_written_back_is_refused(function):
    with pytest.raises(CaptureError) as caught:
        capture_module(Function(function), (torch.randn(2, 4, 4),))
    assert caught.value.code == "view-write-unsupported"


def half_a_batch_on(x):
    half = len(x) // 2
    return torch.cat([x[half:], x[:half]])


def one_less(x):
    return x.flatten(1) + torch.zeros(len(x) - 1, 1).sum() + len(x) - 1


@pytest.mark.parametrize("function", [half_a_batch_on, one_less])
def test_numbers_that_are_no_multiple_of_the_batch_size_are_refused(function):
    with pytest.raises(CaptureError) as caught:
        capture_module(Function(function), (torch.randn(2, 4, 4),))
    assert caught.value.code == "batch-dependent-argument"
    assert caught.value.facts["batch_sizes"] == [6, 35]


class Keeps(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.zeros(2, 4))
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.listed, self.log = [torch.zeros(4)], []

    def forward(self, x):
        return self.write(x)


def to_a_row(module, x):
    seen = x + module.rows.sum()
    module.rows[0].add_(1)
    return seen


def to_a_part_of_a_weight(module, x):
    module.weight[:, :2].mul_(0.5)
    return x @ module.weight


def to_a_listed_tensor(module, x):
    module.listed[0].add_(1)
    return x + module.listed[0]


@pytest.mark.parametrize("write", [to_a_row, to_a_part_of_a_weight, to_a_listed_tensor])
def test_writes_to_the_network_itself_are_refused_and_do_not_change_it(write):
    module = Keeps().eval()
    module.write = lambda x: write(module, x)
    with pytest.raises(CaptureError) as caught:
        capture_module(module, (torch.randn(2, 4),))
    assert caught.value.code == "network-keeps-state"
    assert not module.rows.any() and not module.listed[0].any()
    assert torch.equal(module.weight, torch.ones(4, 4))


def test_what_a_run_appends_to_a_list_is_removed():
    module = Keeps().eval()
    module.write = lambda x: module.log.append(x.mean()) or x + 1
    capture_module(module, (torch.randn(2, 4),))
    assert module.log == []
