"""Costs against torch's own counter of operations, sums over parameters and depths counted by
hand."""

from __future__ import annotations

import pytest
import torch
from helpers.captured import captured, timm_program
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fitcompress.graph.analysis.costs import (
    Costs,
    count_macs,
    data_nodes,
    is_contraction,
    is_weighted,
    measure_costs,
    node_depths,
)
from fitcompress.graph.program import operation


class Function(nn.Module):
    """A function of the input and a few weights of given shapes."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)

    def forward(self, *inputs):
        return self.function(*inputs, *self.weights)


def counted_flops(module: nn.Module, *inputs: torch.Tensor) -> int:
    # torch 2.14's counter knows no formula of its fused attention on the CPU and counts 0
    plain = sdpa_kernel(SDPBackend.MATH)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        module.eval()(*inputs)
    return counter.get_total_flops()


CALLS = {
    "conv1d": (lambda x, w: F.conv1d(x, w, stride=2), [(6, 4, 3)], (4, 11)),
    "conv2d grouped": (lambda x, w: F.conv2d(x, w, padding=1, groups=2), [(6, 2, 3, 3)], (4, 7, 9)),
    "conv3d": (lambda x, w: F.conv3d(x, w), [(5, 3, 2, 2, 2)], (3, 4, 5, 6)),
    "conv with bias": (lambda x, w, b: F.conv2d(x, w, b), [(6, 4, 3, 3), (6,)], (4, 7, 9)),
    "transposed": (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(4, 6, 3, 3)], (4, 5, 6)),
    "transposed grouped": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, groups=2),
        [(4, 3, 3, 3)],
        (4, 5, 6),
    ),
    "linear": (lambda x, w, b: F.linear(x, w, b), [(5, 7), (5,)], (3, 7)),
    "matmul": (lambda x, w: x @ w, [(7, 5)], (3, 7)),
    "matmul of data": (lambda x: x @ x.transpose(1, 2), [], (3, 7)),
    "addmm": (lambda x, b, w: torch.addmm(b, x, w), [(5,), (7, 5)], (7,)),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :, :3] * 0, x, x.transpose(1, 2)), [], (3, 7)),
    "einsum": (lambda x, w: torch.einsum("nld,kd->nlk", x, w), [(5, 7)], (3, 7)),
    "einsum without an arrow": (lambda x, w: torch.einsum("nld,dk", x, w), [(7, 5)], (3, 7)),
    "einsum of the last": (lambda x, w: torch.einsum("...d,kd->...k", x, w), [(5, 7)], (3, 7)),
    "einsum of data": (lambda x: torch.einsum("nld,nmd->nlm", x, x), [], (3, 7)),
    "attention": (
        lambda x, k, v: F.scaled_dot_product_attention(
            x, k.expand(len(x), 2, 5, 8), v.expand(len(x), 2, 5, 4)
        ),
        [(2, 5, 8), (2, 5, 4)],
        (2, 3, 8),
    ),
    "attention of itself": (lambda x: F.scaled_dot_product_attention(x, x, x), [], (2, 3, 8)),
}


@pytest.mark.parametrize("name", CALLS)
def test_flops_of_one_call_are_those_of_torch(name):
    function, weights, shape = CALLS[name]
    module = Function(function, *weights)
    program = captured(module, shape)
    assert any(is_contraction(node) for node in program.graph.nodes)
    assert 2 * count_macs(program) == counted_flops(module, torch.randn(1, *shape)) > 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("vit_tiny_patch16_224", 32),
        ("convnext_atto", 64),
        ("mobilenetv3_small_100", 64),
    ],
)
def test_flops_of_a_model_are_those_of_torch(name, size):
    import timm

    with torch.device("meta"):
        options = {"img_size": size} if name.startswith("vit") else {}
        model = timm.create_model(name, pretrained=False, **options).eval()
    costs = measure_costs(timm_program(name, size))
    assert costs.flops == counted_flops(model, torch.zeros(1, 3, size, size, device="meta"))
    assert costs.params == sum(p.numel() for p in model.parameters())


def test_resnet50_costs_what_is_published():
    """25.56 M parameters and 4.09 G multiply-adds at 224 (torchvision's model table: 4.09
    GFLOPS)."""
    costs = measure_costs(timm_program("resnet50"))
    assert costs.params == 25_557_032
    assert costs.macs == pytest.approx(4.09e9, rel=0.005)
    assert costs.depth == 50


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("resnet18", 18),
        ("vgg11", 11),
        ("vit_tiny_patch16_224", 1 + 12 * 4 + 1),
        ("swin_tiny_patch4_window7_224", 1 + 12 * 4 + 3 + 1),
        ("densenet121", 121),
    ],
)
def test_depth_is_that_of_the_name_or_counted_by_hand(name, depth):
    assert measure_costs(timm_program(name)).depth == depth


def test_depth_follows_the_longest_branch():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.short = nn.Conv2d(3, 4, 1)
            self.long = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            return self.head((self.short(x) + self.long(x)).mean((2, 3)))

    assert measure_costs(captured(Branches(), (3, 5, 5))).depth == 3


def test_calls_on_weights_alone_do_not_add_depth():
    """A normalized weight, or a product of weights, counts once, where it meets the data."""
    module = Function(lambda x, a, b: F.linear(x, F.normalize(a @ b)), (5, 3), (3, 7))
    assert measure_costs(captured(module, (7,))).depth == 1


def test_attention_is_no_layer_even_with_a_trained_mask():
    module = Function(
        lambda x, mask: F.scaled_dot_product_attention(x, x, x, attn_mask=mask), (3, 3)
    )
    program = captured(module, (2, 3, 8))
    assert measure_costs(program).depth == 0
    assert not any(is_weighted(node, data_nodes(program)) for node in program.graph.nodes)


def test_products_of_data_with_data_are_contractions_but_no_layers():
    program = captured(Function(lambda x: x @ x.transpose(1, 2)), (3, 7))
    (product,) = [node for node in program.graph.nodes if is_contraction(node)]
    assert not is_weighted(product, data_nodes(program))


def test_the_depth_of_each_node_never_falls_along_an_edge():
    program = timm_program("resnet18", 64)
    depths, data = node_depths(program), data_nodes(program)
    for node in program.graph.nodes:
        assert all(depths[source] <= depths[node] for source in node.all_input_nodes)
        assert not depths[node] or node in data
        assert depths[node] - max([depths[s] for s in node.all_input_nodes], default=0) == (
            operation(node) in ("conv2d", "linear")
        )


def test_frozen_tensors_are_not_parameters():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    assert measure_costs(captured(module, (3,))).params == 3 * 4 + 4 + 4 + 4


def test_costs_as_a_dictionary():
    assert Costs(1, 2, 3).to_dict() == {"params": 1, "macs": 2, "depth": 3, "flops": 4}
