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
    hint_grid: tuple[int, ...] | None = None,
    guided_grid: tuple[int, ...] | None = None,
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
        hint_grid: the grid that a sequence of tokens ends in; what stands before it are class and
            register tokens. None infers it, as for the guided side.

    Raises:
        PlanError: no regressor leads from one shape to the other.

    Source: FitNets (arXiv 1412.6550v4) section 2.2: N_g - k + 1 = N_h, the regressor ends in the
    hint's non-linearity.

    >>> make_regressor((64, 7, 7), (20, 8, 8), non_negative_hint=True, when_equal=True)[1]
    '2x2 conv 20 -> 64, ReLU'
    """
    hint = _read_layout("hint", hint_shape, hint_channel_axis, hint_grid)
    guided = _read_layout("guided", guided_shape, guided_channel_axis, guided_grid)
    hint, guided = _without_prefix(hint, guided), _without_prefix(guided, hint)
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
    grid: tuple[int, ...] = ()
    """The places of a map, or of tokens where it is known how they lie; else empty."""
    num_prefix: int = 0

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def positions(self) -> tuple[int, ...]:
        return self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]


def _read_layout(
    side: str, shape: tuple[int, ...], channel_axis: int | None, grid: tuple[int, ...] | None
) -> _Layout:
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
    if rank > 2 or axis == 0:
        positions = shape[:axis] + shape[axis + 1 :]
        return _Layout(kind="map", shape=shape, channel_axis=axis, grid=positions)
    if grid and math.prod(grid) > shape[0]:
        raise PlanError(
            f"choosing a regressor: the {side} value {shape} has fewer tokens than the grid {grid}"
        )
    return _Layout(kind="tokens", shape=shape, channel_axis=axis, grid=grid or ())


def _infer_channel_axis(shape: tuple[int, ...]) -> int:
    """Tokens are (L, D); a map is channels-last only where its leading axes are equal and the last
    differs: (7, 7, 768).
    """
    is_channels_last = len(set(shape[:-1])) == 1 and shape[-1] != shape[0]
    return len(shape) - 1 if len(shape) == 2 or (len(shape) > 2 and is_channels_last) else 0


def _without_prefix(layout: _Layout, other: _Layout) -> _Layout:
    """Tokens without those that have no place in the grid; all else as it is."""
    if layout.kind != "tokens":
        return layout
    length, width = layout.shape
    is_other_rank = other.kind == "map" and len(layout.grid) != len(other.grid)
    grid = _infer_grid(length, other) if not layout.grid or is_other_rank else layout.grid
    num_prefix = length - math.prod(grid) if grid else 0
    return replace(layout, shape=(length - num_prefix, width), grid=grid, num_prefix=num_prefix)


def _infer_grid(length: int, other: _Layout) -> tuple[int, ...]:
    """How the tokens of a sequence lie behind some prefix: as the other side's grid in small or
    large, else as a square; empty where neither can be.
    """
    for like, num_least in ((other.grid, 1), ((2, 2), 2)):
        for num_prefix in _PREFIX_COUNTS if like else ():
            count = length - num_prefix
            if count >= num_least and (grid := _grid_like(like, count)):
                return grid
    return ()


def _grid_like(like: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The grid of `count` places with the sides of `like`, times one factor; empty where there is
    none.

    >>> _grid_like((28, 14), 98), _grid_like((28, 14), 99)
    ((14, 7), ())
    """
    scale = (count / math.prod(like)) ** (1 / len(like))
    grid = tuple(round(side * scale) for side in like)
    return grid if math.prod(grid) == count else ()


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
    elif hint.kind == guided.kind == "tokens" and hint.positions == guided.positions:
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
    """The positions of both sides as grids of the same rank; two token sequences of which one has
    no grid, or one of another rank, stay lines.
    """
    fit = len(guided.grid) == len(hint.grid) > 0
    if guided.kind == hint.kind == "tokens":
        return (guided.grid, hint.grid) if fit else (guided.positions, hint.positions)
    if not fit:
        raise PlanError(
            f"choosing a regressor: the positions {guided.positions} of the guided value do not"
            f" fold to a grid like the {hint.positions} of the hint",
            advice="Name layers of the same kind with --hint and --guided.",
        )
    return guided.grid, hint.grid


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
