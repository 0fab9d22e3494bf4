"""Every kind of regressor has the hint's shape, and what cannot be mapped is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fitcompress.distillation.regressors import make_regressor
from fitcompress.errors import PlanError

# name: hint shape, guided shape, further arguments, description, shape of the target
CASES = {
    "equal maps": ((64, 7, 7), (20, 7, 7), {}, "1x1 conv 20 -> 64", None),
    "fitnet 4": ((192, 7, 7), (80, 8, 8), {}, "2x2 conv 80 -> 192", None),
    "largest kernel": ((8, 7, 7), (4, 13, 13), {}, "7x7 conv 4 -> 8", None),
    "beyond it": ((8, 7, 7), (4, 14, 14), {}, "average pool to 7x7, 1x1 conv 4 -> 8", None),
    "larger hint": ((8, 14, 14), (4, 7, 7), {}, "1x1 conv 4 -> 8, bilinear to 14x14", None),
    "sides differ": ((8, 6, 9), (4, 8, 4), {}, "3x1 conv 4 -> 8, bilinear to 6x9", None),
    "pool one side": ((8, 2, 5), (4, 32, 6), {}, "average pool to 2x6, 1x2 conv 4 -> 8", None),
    "1-D map": (
        (8, 10),
        (4, 12),
        {"hint_channel_axis": 0, "guided_channel_axis": 0},
        "3 conv 4 -> 8",
        None,
    ),
    "3-D map": ((8, 3, 4, 4), (4, 4, 4, 4), {}, "2x1x1 conv 4 -> 8", None),
    "3-D larger hint": (
        (8, 6, 6, 6),
        (4, 3, 3, 3),
        {},
        "1x1x1 conv 4 -> 8, trilinear to 6x6x6",
        None,
    ),
    "channels last": ((7, 7, 96), (8, 8, 24), {}, "2x2 conv 24 -> 96", None),
    "channels last told": (
        (7, 5, 96),
        (8, 5, 24),
        {"hint_channel_axis": -1, "guided_channel_axis": 2},
        "2x1 conv 24 -> 96",
        None,
    ),
    "last from first": ((7, 7, 96), (24, 7, 7), {}, "1x1 conv 24 -> 96", None),
    "first from last": ((96, 7, 7), (7, 7, 24), {}, "1x1 conv 24 -> 96", None),
    "tokens": ((196, 192), (196, 64), {}, "linear 64 -> 192", None),
    "class token": (
        (197, 192),
        (197, 64),
        {},
        "without 1 prefix tokens, linear 64 -> 192",
        (196, 192),
    ),
    "class token one side": ((197, 192), (196, 64), {}, "linear 64 -> 192", (196, 192)),
    "registers told": (
        (20, 8),
        (20, 4),
        {"hint_grid": (17,), "guided_grid": (17,)},
        "without 3 prefix tokens, linear 4 -> 8",
        (17, 8),
    ),
    "a line of tokens": ((31, 8), (31, 4), {}, "linear 4 -> 8", None),
    "shorter line": ((31, 8), (34, 4), {}, "fold to 34, 4 conv 4 -> 8, flatten", None),
    "fewer tokens": (
        (50, 8),
        (65, 4),
        {},
        "without 1 prefix tokens, fold to 8x8, 2x2 conv 4 -> 8, flatten",
        (49, 8),
    ),
    "tokens to map": (
        (8, 14, 14),
        (197, 4),
        {},
        "without 1 prefix tokens, fold to 14x14, 1x1 conv 4 -> 8",
        None,
    ),
    "tokens to oblong map": (
        (8, 6, 4),
        (25, 4),
        {},
        "without 1 prefix tokens, fold to 6x4, 1x1 conv 4 -> 8",
        None,
    ),
    "oblong tokens to larger map": (
        (9, 8, 12),
        (25, 4),
        {},
        "without 1 prefix tokens, fold to 4x6, 1x1 conv 4 -> 9, bilinear to 8x12",
        None,
    ),
    "oblong tokens told on one side": (
        (25, 8),
        (6, 4),
        {"hint_grid": (4, 6)},
        "fold to 2x3, 1x1 conv 4 -> 8, bilinear to 4x6, flatten",
        (24, 8),
    ),
    "registers before oblong tokens": (
        (29, 8),
        (6, 4),
        {"hint_grid": (4, 6), "guided_grid": (2, 3)},
        "fold to 2x3, 1x1 conv 4 -> 8, bilinear to 4x6, flatten",
        (24, 8),
    ),
    "a grid of another rank than the map": (
        (8, 4, 4),
        (17, 4),
        {"guided_grid": (16,)},
        "without 1 prefix tokens, fold to 4x4, 1x1 conv 4 -> 8",
        None,
    ),
    "tokens to smaller map": (
        (8, 7, 7),
        (196, 4),
        {},
        "fold to 14x14, average pool to 7x7, 1x1 conv 4 -> 8",
        None,
    ),
    "map to tokens": ((197, 8), (4, 14, 14), {}, "1x1 conv 4 -> 8, flatten", (196, 8)),
    "smaller map to tokens": (
        (197, 8),
        (4, 7, 7),
        {},
        "1x1 conv 4 -> 8, bilinear to 14x14, flatten",
        (196, 8),
    ),
    "last map to tokens": ((197, 8), (14, 14, 4), {}, "1x1 conv 4 -> 8, flatten", (196, 8)),
    "vectors": ((64,), (20,), {}, "linear 20 -> 64", None),
    "map to vector": ((64,), (20, 7, 7), {}, "mean over positions, linear 20 -> 64", None),
    "last map to vector": ((64,), (7, 7, 20), {}, "mean over positions, linear 20 -> 64", None),
    "tokens to vector": (
        (64,),
        (33, 20),
        {"guided_grid": (4, 8)},
        "without 1 prefix tokens, mean over positions, linear 20 -> 64",
        None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_output_has_the_shape_of_the_target(name):
    hint_shape, guided_shape, arguments, description, target_shape = CASES[name]
    regressor, words = make_regressor(
        hint_shape, guided_shape, non_negative_hint=False, when_equal=True, **arguments
    )
    target = regressor.target(torch.randn(2, *hint_shape))
    output = regressor(torch.randn(2, *guided_shape))
    assert output.shape == target.shape == (2, *(target_shape or hint_shape))
    assert words == description
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in regressor.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_channel_axis_of_the_target_holds_the_hints_channels(name):
    hint_shape, guided_shape, arguments, *_ = CASES[name]
    regressor, _ = make_regressor(
        hint_shape, guided_shape, non_negative_hint=True, when_equal=True, **arguments
    )
    output = regressor(torch.randn(2, *guided_shape))
    assert output.shape[regressor.channel_axis] == next(regressor.project.parameters()).shape[0]


@pytest.mark.parametrize("name", ["fitnet 4", "larger hint", "tokens", "vectors", "map to tokens"])
@pytest.mark.parametrize("non_negative", [True, False])
def test_a_relu_ends_it_exactly_where_the_hint_is_non_negative(name, non_negative):
    hint_shape, guided_shape, arguments, description, _ = CASES[name]
    regressor, words = make_regressor(
        hint_shape, guided_shape, non_negative_hint=non_negative, when_equal=True, **arguments
    )
    assert words == description + ", ReLU" * non_negative
    assert bool((regressor(torch.randn(8, *guided_shape)) >= 0).all()) == non_negative


WRONG = {
    "no axes": ((), (4,), {}, "hint-shape-unsupported"),
    "five axes": ((1, 2, 3, 4, 5), (4,), {}, "hint-shape-unsupported"),
    "empty axis": ((0, 7, 7), (4, 7, 7), {}, "hint-shape-unsupported"),
    "vector to map": ((8, 7, 7), (4,), {}, "guided-without-positions"),
    "vector to tokens": ((49, 8), (4,), {}, "guided-without-positions"),
    "spatial axes differ": ((8, 3, 4, 5), (4, 7, 7), {}, "grids-incompatible"),
    "tokens without a grid": ((8, 7, 7), (31, 4), {}, "grids-incompatible"),
    "no such axis": ((8, 7, 7), (4, 7, 7), {"hint_channel_axis": 3}, "channel-axis-missing"),
    "a grid larger than the tokens": ((5, 8), (5, 4), {"guided_grid": (2, 3)}, "grid-too-large"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_mapped_is_refused(name):
    hint_shape, guided_shape, arguments, code = WRONG[name]
    with pytest.raises(PlanError) as caught:
        make_regressor(
            hint_shape, guided_shape, non_negative_hint=False, when_equal=True, **arguments
        )
    assert caught.value.code == code


@pytest.mark.parametrize("shape", [(8, 7, 7), (16, 8), (8,)], ids=["map", "tokens", "vector"])
def test_equal_shapes_get_the_identity_on_request(shape):
    regressor, words = make_regressor(shape, shape, non_negative_hint=True, when_equal=False)
    value = torch.randn(2, *shape)
    assert words == "identity"
    assert torch.equal(regressor(value), regressor.target(value))
    assert not list(regressor.parameters())


def test_the_identity_on_tokens_drops_the_class_token_on_both_sides():
    regressor, words = make_regressor((17, 8), (17, 8), non_negative_hint=False, when_equal=False)
    value = torch.randn(2, 17, 8)
    assert torch.equal(regressor(value), value[:, 1:]) and torch.equal(
        regressor.target(value), value[:, 1:]
    )
    assert words == "without 1 prefix tokens"


def test_equal_shapes_get_a_1x1_convolution_by_default():
    regressor, _ = make_regressor((8, 7, 7), (8, 7, 7), non_negative_hint=False, when_equal=True)
    assert isinstance(regressor.project, nn.Conv2d)


def test_tokens_keep_their_place_when_they_are_folded():
    """Tokens and the map that they were flattened from must have the same output."""
    torch.manual_seed(0)
    from_map, _ = make_regressor((8, 6, 6), (4, 6, 6), non_negative_hint=False, when_equal=True)
    from_tokens, _ = make_regressor((8, 6, 6), (37, 4), non_negative_hint=False, when_equal=True)
    from_tokens.project.load_state_dict(from_map.project.state_dict())
    map_NCHW = torch.randn(2, 4, 6, 6)
    tokens_NLD = torch.cat([torch.randn(2, 1, 4), map_NCHW.flatten(2).transpose(1, 2)], 1)
    # The kernel sees other strides: rounding may differ.
    assert torch.allclose(from_map(map_NCHW), from_tokens(tokens_NLD), atol=1e-6)
