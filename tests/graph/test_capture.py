"""Capture of modules and exported programs: exact, functional, free of devices, and without a trace
on the module.
"""

from __future__ import annotations

import pytest
import torch
from small_nets import FixedBatch, Residual, Tokens, quietly, trained_a_little
from torch import nn
from torch._ops import OpOverload

from fitcompress.errors import CaptureError, ObstacleError
from fitcompress.graph.capture import capture_module, evaluating
from fitcompress.graph.exported import capture_exported
from fitcompress.graph.program import propagate_shapes, run_program


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


def test_what_a_run_keeps_does_not_show_in_the_next_one_nor_in_the_module():
    module = Caches().eval()
    program = capture_module(module, (torch.randn(2, 4),))
    assert module.last is None and not module.tables
    x = torch.randn(5, 4)
    assert torch.equal(run_program(program, x)[0], module(x))


def test_a_tensor_that_was_kept_without_values_is_refused():
    module = Caches().eval()
    module.tables["ones"] = torch.ones(4, device="meta")
    with pytest.raises(CaptureError, match="comes from an earlier run"):
        capture_module(module, (torch.randn(2, 4),))


def test_a_branch_on_values_is_refused_with_its_line():
    class Branches(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                return x
            return -x

    with pytest.raises(ObstacleError, match=r"is_nonzero.*in `if x.sum\(\) > 0:`"):
        capture_module(Branches(), (torch.randn(2, 4),))


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

    with pytest.raises(CaptureError, match="a constant that depends on the batch size"):
        capture_module(Counts(), (torch.randn(2, 4),))


def test_a_change_through_a_dropout_is_kept_or_refused_never_lost():
    module, x = WritesThroughDropout().eval(), torch.randn(2, 4, 4)
    try:
        program = capture_module(module, (torch.randn(2, 4, 4),))
    except CaptureError as error:
        assert "dropout" in str(error) or "changes a tensor" in str(error)
        assert torch.__version__ < "2.12"
    else:
        with torch.no_grad():
            assert torch.equal(run_program(program, x)[0], module(x.clone()))


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
    with pytest.raises(CaptureError, match="its own tensor 'count'"):
        capture_module(Counter(), (torch.randn(2, 4, 4),))


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


def test_training_flags_come_back_after_an_error():
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
    with pytest.raises(CaptureError, match="freeing the batch size"):
        capture_exported(exported)


def test_an_error_of_the_module_is_a_capture_error():
    with pytest.raises(CaptureError, match=r"running Linear on inputs of \(4,\)"):
        capture_module(nn.Linear(3, 3), (torch.randn(2, 4),))


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


def test_a_write_that_cannot_be_carried_back_is_refused():
    def forward(x):
        y = x.clone()
        y.diagonal(dim1=1, dim2=2).zero_()
        return y

    with pytest.raises(CaptureError, match="diagonal"):
        capture_module(Function(forward), (torch.randn(2, 4, 4),))
