"""Regressors: what maps the student's guided values to the shape of the teacher's hint in stage 1.

Layer: torch and errors; knows shapes, no network. A regressor is chosen from the two shapes alone
(the batch left out). It never becomes a part of the student.

Shapes: `N` batch, `C` channels, `H W` space (or one or three such axes), `L` tokens, `D` width. A
value is a *vector* (D), a sequence of *tokens* (L, D), or a *map* such as (C, H, W) or (H, W, C).
Which axis holds the channels is told by the caller, who knows the graph, or inferred.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from fitcompress.errors import PlanError

__all__ = ["Regressor", "make_regressor"]

_LARGEST_KERNEL = 7
"""Beyond it the regressor would outweigh the student: the guided map is average-pooled first."""

_PREFIX_COUNTS = (0, 1, 2, 4, 5)
"""Tokens before the grid: none, class, class and distillation, 4 registers, these and a class."""

_CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Regressor(nn.Sequential):
    """Maps guided values (N, *guided shape) to the shape of `target`; step by step."""

    def __init__(
        self, steps: OrderedDict[str, nn.Module], *, num_hint_prefix: int, channel_axis: int
    ) -> None:
        super().__init__(steps)
        self.num_hint_prefix = num_hint_prefix
        self.channel_axis = channel_axis
        """The axis of the target's channels, counted with the batch."""

    def target(self, hint: Tensor) -> Tensor:
        """The hint without class and register tokens, which have no place in the grid."""
        return hint[:, self.num_hint_prefix :] if self.num_hint_prefix else hint


def make_regressor(
    hint_shape: tuple[int, ...],
    guided_shape: tuple[int, ...],
    *,
    non_negative_hint: bool,
    when_equal: bool,
    hint_channel_axis: int | None = None,
    guided_channel_axis: int | None = None,
    num_prefix_tokens: int | None = None,
) -> tuple[Regressor, str]:
    """The regressor from the guided to the hint's shape, and its description for a person.

    Per spatial side with sizes N_g (guided) and N_h (hint): a valid convolution of N_g - N_h + 1
    where N_g >= N_h (1x1 when equal); where that would pass 7, average pooling to N_h and 1x1;
    where N_g < N_h, 1x1 and linear interpolation. Tokens lose their class and register tokens; with
    as many tokens on both sides they are projected by a linear layer, else they are folded to their
    grid and treated as a map. A vector hint takes the mean over positions and a linear layer.

    Args:
        hint_shape: the hint's shape without the batch.
        guided_shape: the guided value's shape without the batch.
        non_negative_hint: whether the hint, as it enters the loss, has no negative values: the
            regressor then ends in a ReLU.
        when_equal: whether equal shapes get a 1x1 (or linear) regressor too; else they get the
            identity.
        hint_channel_axis: the channel axis in `hint_shape` (0 in CHW, -1 in HWC); None infers it,
            as for the guided side.
        num_prefix_tokens: class and register tokens before the grid, on whichever side is a token
            sequence; None infers it.

    Raises:
        PlanError: no regressor leads from one shape to the other.

    Source: FitNets (arXiv 1412.6550v4) section 2.2: N_g - k + 1 = N_h, the regressor ends in the
    hint's non-linearity.

    >>> make_regressor((64, 7, 7), (20, 8, 8), non_negative_hint=True, when_equal=True)[1]
    '2x2 conv 20 -> 64, ReLU'
    """
    hint = _read_layout("hint", hint_shape, hint_channel_axis)
    guided = _read_layout("guided", guided_shape, guided_channel_axis)
    hint, guided = (
        _without_prefix(hint, guided, num_prefix_tokens),
        _without_prefix(guided, hint, num_prefix_tokens),
    )
    is_identity = not when_equal and (hint.shape, hint.channel_axis) == (
        guided.shape,
        guided.channel_axis,
    )
    plan = _Plan(guided.num_prefix)
    if not is_identity:
        _plan_steps(plan, hint, guided, non_negative_hint)
    axis = 1 + hint.channel_axis
    return Regressor(
        plan.steps, num_hint_prefix=hint.num_prefix, channel_axis=axis
    ), plan.description


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the axes of a value mean; `shape` without the batch and without the `num_prefix` tokens
    that are dropped.
    """

    kind: Literal["vector", "tokens", "map"]
    shape: tuple[int, ...]
    channel_axis: int
    num_prefix: int = 0

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def positions(self) -> tuple[int, ...]:
        return self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]


def _read_layout(side: str, shape: tuple[int, ...], channel_axis: int | None) -> _Layout:
    rank = len(shape)
    if not 1 <= rank <= 4 or min(shape) < 1:
        raise PlanError(
            f"choosing a regressor: the {side} value has the shape {shape} without the batch;"
            " expected 1 to 4 axes, none of them empty",
            advice="Name another layer with --hint and --guided.",
        )
    axis = _infer_channel_axis(shape) if channel_axis is None else channel_axis
    if not -rank <= axis < rank:
        raise PlanError(
            f"choosing a regressor: the {side} value {shape} has no channel axis {axis}"
        )
    axis %= rank
    if rank == 1:
        return _Layout(kind="vector", shape=shape, channel_axis=0)
    return _Layout(
        kind="tokens" if rank == 2 and axis == 1 else "map", shape=shape, channel_axis=axis
    )


def _infer_channel_axis(shape: tuple[int, ...]) -> int:
    """Tokens are (L, D); a map is channels-last only where its leading axes are equal and the last
    differs: (7, 7, 768).
    """
    is_channels_last = len(set(shape[:-1])) == 1 and shape[-1] != shape[0]
    return len(shape) - 1 if len(shape) == 2 or (len(shape) > 2 and is_channels_last) else 0


def _without_prefix(layout: _Layout, other: _Layout, num_prefix_tokens: int | None) -> _Layout:
    if layout.kind != "tokens":
        return layout
    length, width = layout.shape
    num_prefix = (
        _infer_num_prefix(length, other) if num_prefix_tokens is None else num_prefix_tokens
    )
    if not 0 <= num_prefix < length:
        raise PlanError(
            f"choosing a regressor: {num_prefix} prefix tokens in a sequence of {length}"
        )
    return replace(layout, shape=(length - num_prefix, width), num_prefix=num_prefix)


def _infer_num_prefix(length: int, other: _Layout) -> int:
    """The tokens before the grid: the other side's map tells the grid, else it is taken to be a
    square.
    """
    if other.kind == "map" and length - math.prod(other.positions) in _PREFIX_COUNTS:
        return length - math.prod(other.positions)
    return next((n for n in _PREFIX_COUNTS if _side(length - n, 2) > 1), 0)


class _Plan:
    """Collects the steps of a regressor with their names and their words."""

    def __init__(self, num_guided_prefix: int) -> None:
        self.steps: OrderedDict[str, nn.Module] = OrderedDict()
        self._words: list[str] = []
        if num_guided_prefix:
            self.add(
                "drop_prefix",
                _DropPrefix(num_guided_prefix),
                f"without {num_guided_prefix} prefix tokens",
            )

    def add(self, name: str, step: nn.Module, words: str = "") -> None:
        self.steps[name] = step
        self._words += [words] if words else []

    @property
    def description(self) -> str:
        return ", ".join(self._words) or "identity"


def _plan_steps(plan: _Plan, hint: _Layout, guided: _Layout, is_rectified: bool) -> None:
    if hint.kind == "vector":
        if guided.kind != "vector":
            plan.add("pool", _MeanOverPositions(guided.channel_axis + 1), "mean over positions")
        _plan_linear(plan, hint, guided)
    elif guided.kind == "vector":
        raise PlanError(
            f"choosing a regressor: the guided value {guided.shape} has no positions,"
            f" the hint {hint.shape} has",
            advice="Name an earlier guided layer with --guided, or a later hint with --hint.",
        )
    elif hint.kind == guided.kind == "tokens" and hint.shape[0] == guided.shape[0]:
        _plan_linear(plan, hint, guided)
    else:
        _plan_map(plan, hint, guided)
    if is_rectified:
        plan.add("rectify", nn.ReLU(), "ReLU")


def _plan_linear(plan: _Plan, hint: _Layout, guided: _Layout) -> None:
    words = f"linear {guided.channels} -> {hint.channels}"
    plan.add("project", nn.Linear(guided.channels, hint.channels), words)


def _plan_map(plan: _Plan, hint: _Layout, guided: _Layout) -> None:
    """Fold to (N, C, *grid), pool, convolve, resize, and back to the hint's own order of axes."""
    source, goal = _grids(guided, hint)
    gaps = [large - small + 1 for large, small in zip(source, goal, strict=True)]
    pooled = tuple(
        n if gap > _LARGEST_KERNEL else m for m, n, gap in zip(source, goal, gaps, strict=True)
    )
    kernel = tuple(gap if 1 <= gap <= _LARGEST_KERNEL else 1 for gap in gaps)
    rank = len(goal)
    if guided.kind == "tokens" or guided.channel_axis != 0:
        plan.add(
            "fold",
            _ToMap(guided.channel_axis + 1, source),
            f"fold to {_by(source)}" * (guided.kind == "tokens"),
        )
    if pooled != source:
        plan.add("pool", _POOLS[rank](pooled), f"average pool to {_by(pooled)}")
    project = _CONVS[rank](guided.channels, hint.channels, kernel)
    plan.add("project", project, f"{_by(kernel)} conv {guided.channels} -> {hint.channels}")
    if any(m < n for m, n in zip(source, goal, strict=True)):
        mode = _INTERPOLATIONS[rank]
        plan.add(
            "resize", nn.Upsample(goal, mode=mode, align_corners=False), f"{mode} to {_by(goal)}"
        )
    if hint.kind == "tokens" or hint.channel_axis != 0:
        plan.add(
            "unfold",
            _FromMap(hint.channel_axis + 1, hint.positions),
            "flatten" * (hint.kind == "tokens"),
        )


def _grids(guided: _Layout, hint: _Layout) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of both sides as grids of the same rank; two token sequences without square
    grids stay lines.
    """
    if guided.kind == hint.kind == "tokens":
        sides = [_side(layout.positions[0], 2) for layout in (guided, hint)]
        return (
            ((sides[0],) * 2, (sides[1],) * 2) if all(sides) else (guided.positions, hint.positions)
        )
    grids = _grid_like(guided, hint), _grid_like(hint, guided)
    if len(grids[0]) != len(grids[1]):
        raise PlanError(
            f"choosing a regressor: the guided map {guided.shape} and the hint {hint.shape}"
            " differ in their number of spatial axes",
            advice="Name layers of the same kind with --hint and --guided.",
        )
    return grids


def _grid_like(layout: _Layout, other: _Layout) -> tuple[int, ...]:
    """The layout's own grid; that of tokens is the other side's where the counts agree, else the
    square (or cube).
    """
    if layout.kind == "map" or math.prod(other.positions) == layout.positions[0]:
        return layout.positions if layout.kind == "map" else other.positions
    rank = len(other.positions)
    if side := _side(layout.positions[0], rank):
        return (side,) * rank
    raise PlanError(
        f"choosing a regressor: {layout.positions[0]} tokens do not fold to a grid"
        f" beside the map {other.shape}",
        advice="Name another layer with --hint or --guided.",
    )


def _side(count: int, rank: int) -> int:
    """The side of the square (cube) that holds `count` positions, or 0 where there is none."""
    side = round(max(count, 0) ** (1 / rank))
    return side if side**rank == count else 0


def _by(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes)) if len(sizes) > 1 else str(sizes[0])


class _DropPrefix(nn.Module):
    def __init__(self, num_prefix: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix

    def forward(self, tokens_NLD: Tensor) -> Tensor:
        return tokens_NLD[:, self.num_prefix :]


class _MeanOverPositions(nn.Module):
    def __init__(self, channel_axis: int) -> None:
        super().__init__()
        self.channel_axis = channel_axis

    def forward(self, values: Tensor) -> Tensor:
        return values.movedim(self.channel_axis, 1).flatten(2).mean(2)


class _ToMap(nn.Module):
    """Tokens or a channels-last map to (N, C, *grid)."""

    def __init__(self, channel_axis: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_axis, self.grid = channel_axis, grid

    def forward(self, values: Tensor) -> Tensor:
        values_NC = values.movedim(self.channel_axis, 1)
        return values_NC.reshape(values_NC.shape[:2] + self.grid)


class _FromMap(nn.Module):
    """(N, C, *grid) to the positions and the channel axis of the hint."""

    def __init__(self, channel_axis: int, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_axis, self.positions = channel_axis, positions

    def forward(self, map_NC: Tensor) -> Tensor:
        values_NC = map_NC.reshape(map_NC.shape[:2] + self.positions)
        return values_NC.movedim(1, self.channel_axis)
