"""Regressors map the student's guided values to the shape of the teacher's hint.

A regressor is chosen from the two shapes without the batch. It never becomes part of the student.

Shapes: `N` batch, `C` channels, `H W` space (or one or three spatial axes), `L` tokens, `D` width.
A value is a *vector* (D), *tokens* (L, D), or a *map* such as (C, H, W) or (H, W, C). If the graph
does not tell the channel axis or the grid of tokens, they are inferred by heuristics.
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
"""A larger kernel would outweigh the student; the guided map is average-pooled instead."""

_COMMON_PREFIX_COUNTS = (0, 1, 2, 4, 5)
"""Heuristic: numbers of tokens before the grid that are tried if the graph does not tell, after
ViT (1: class), DeiT (2: class, distillation) and DINOv2 (4 registers, 5 with class)."""

_CONVS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_POOLS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
_INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}


class Regressor(nn.Sequential):
    """Maps guided values (N, *guided shape) to the shape of `target`."""

    def __init__(
        self, steps: OrderedDict[str, nn.Module], *, num_hint_prefix: int, channel_axis: int
    ) -> None:
        super().__init__(steps)
        self.num_hint_prefix = num_hint_prefix
        self.channel_axis = channel_axis
        """Channel axis of the target, counted with the batch."""

    def target(self, hint: Tensor) -> Tensor:
        """The hint without class and register tokens, which are not in the grid."""
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
    """The regressor from the guided to the hint's shape, and its description.

    Per spatial axis with sizes N_g (guided) and N_h (hint):
    - N_g >= N_h: a valid convolution of size N_g - N_h + 1, or if that exceeds 7, average pooling
      to N_h and a 1x1 convolution;
    - N_g < N_h: a 1x1 convolution and linear interpolation.

    Class and register tokens are dropped. Equally many tokens on both sides get a linear layer;
    otherwise they are folded to their grid and treated as a map. A vector hint gets the mean over
    positions and a linear layer.

    Args:
        hint_shape: shape of the hint, without the batch.
        guided_shape: shape of the guided value, without the batch.
        non_negative_hint: whether the hint, as it enters the loss, has no negative values; the
            regressor then ends in a ReLU.
        when_equal: whether equal shapes get a 1x1 (or linear) regressor; otherwise the identity.
        hint_channel_axis: channel axis in `hint_shape` (0 in CHW, -1 in HWC); None infers it.
        guided_channel_axis: the same for `guided_shape`.
        hint_grid: grid of the last tokens of a sequence, after class and register tokens; None
            infers it.
        guided_grid: the same for the guided value.

    Raises:
        PlanError: no regressor maps one shape to the other.

    Source: FitNets (arXiv 1412.6550v4) section 2.2: N_g - k + 1 = N_h, the regressor ends in the
    hint's non-linearity.

    >>> make_regressor((64, 7, 7), (20, 8, 8), non_negative_hint=True, when_equal=True)[1]
    '2x2 conv 20 -> 64, ReLU'
    """
    hint = _read_axes("hint", hint_shape, hint_channel_axis, hint_grid)
    guided = _read_axes("guided", guided_shape, guided_channel_axis, guided_grid)
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
class _ValueAxes:
    """The roles of a value's axes.

    `shape` excludes the batch and the `num_prefix` tokens that are dropped.
    """

    kind: Literal["vector", "tokens", "map"]
    shape: tuple[int, ...]
    channel_axis: int
    grid: tuple[int, ...] = ()
    """Spatial sizes of a map, or of tokens with a known grid; otherwise empty."""
    num_prefix: int = 0

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def positions(self) -> tuple[int, ...]:
        return self.shape[: self.channel_axis] + self.shape[self.channel_axis + 1 :]


def _read_axes(
    side: str, shape: tuple[int, ...], channel_axis: int | None, grid: tuple[int, ...] | None
) -> _ValueAxes:
    rank = len(shape)
    if not 1 <= rank <= 4 or min(shape) < 1:
        raise PlanError(
            f"choosing a regressor: expected a {side} output with 1 to 4 non-empty axes besides"
            f" the batch, got shape {shape}",
            code="hint-shape-unsupported",
            advice="Choose another layer with --hint and --guided.",
            side=side,
            shape=list(shape),
        )
    axis = _infer_channel_axis(shape) if channel_axis is None else channel_axis
    if not -rank <= axis < rank:
        raise PlanError(
            f"choosing a regressor: the {side} output of shape {shape} has no channel axis {axis}",
            code="channel-axis-missing",
            advice="Choose another layer with --hint and --guided.",
            side=side,
            shape=list(shape),
            axis=axis,
        )
    axis %= rank
    if rank == 1:
        return _ValueAxes(kind="vector", shape=shape, channel_axis=0)
    if rank > 2 or axis == 0:
        positions = shape[:axis] + shape[axis + 1 :]
        return _ValueAxes(kind="map", shape=shape, channel_axis=axis, grid=positions)
    if grid and math.prod(grid) > shape[0]:
        raise PlanError(
            f"choosing a regressor: the {side} output of shape {shape} has fewer tokens than the"
            f" grid {grid}",
            code="grid-too-large",
            advice="Choose another layer with --hint and --guided.",
            side=side,
            shape=list(shape),
            grid=list(grid),
        )
    return _ValueAxes(kind="tokens", shape=shape, channel_axis=axis, grid=grid or ())


def _infer_channel_axis(shape: tuple[int, ...]) -> int:
    """Heuristic: two axes are tokens (L, D); a map is channels-last only if its leading axes are
    equal and the last one differs, as in (7, 7, 768).
    """
    is_channels_last = len(set(shape[:-1])) == 1 and shape[-1] != shape[0]
    return len(shape) - 1 if len(shape) == 2 or (len(shape) > 2 and is_channels_last) else 0


def _without_prefix(value: _ValueAxes, other: _ValueAxes) -> _ValueAxes:
    """Tokens without those that are not in the grid; other values unchanged."""
    if value.kind != "tokens":
        return value
    length, width = value.shape
    is_other_rank = other.kind == "map" and len(value.grid) != len(other.grid)
    grid = _infer_grid(length, other) if not value.grid or is_other_rank else value.grid
    num_prefix = length - math.prod(grid) if grid else 0
    return replace(value, shape=(length - num_prefix, width), grid=grid, num_prefix=num_prefix)


def _infer_grid(length: int, other: _ValueAxes) -> tuple[int, ...]:
    """Heuristic: the grid of tokens after a prefix of common length has the aspect ratio of the
    other side's grid, otherwise it is square; empty if neither fits.
    """
    for like, num_least in ((other.grid, 1), ((2, 2), 2)):
        for num_prefix in _COMMON_PREFIX_COUNTS if like else ():
            count = length - num_prefix
            if count >= num_least and (grid := _grid_like(like, count)):
                return grid
    return ()


def _grid_like(like: tuple[int, ...], count: int) -> tuple[int, ...]:
    """The grid of `count` positions with the aspect ratio of `like`; empty if there is none.

    >>> _grid_like((28, 14), 98), _grid_like((28, 14), 99)
    ((14, 7), ())
    """
    scale = (count / math.prod(like)) ** (1 / len(like))
    grid = tuple(round(side * scale) for side in like)
    return grid if math.prod(grid) == count else ()


class _Plan:
    """Collects the steps of a regressor, with names and descriptions."""

    def __init__(self, num_guided_prefix: int) -> None:
        self.steps: OrderedDict[str, nn.Module] = OrderedDict()
        self._descriptions: list[str] = []
        if num_guided_prefix:
            self.add(
                "drop_prefix",
                _DropPrefix(num_guided_prefix),
                f"without {num_guided_prefix} prefix tokens",
            )

    def add(self, name: str, step: nn.Module, description: str = "") -> None:
        self.steps[name] = step
        self._descriptions += [description] if description else []

    @property
    def description(self) -> str:
        return ", ".join(self._descriptions) or "identity"


def _plan_steps(plan: _Plan, hint: _ValueAxes, guided: _ValueAxes, is_rectified: bool) -> None:
    if hint.kind == "vector":
        if guided.kind != "vector":
            plan.add("pool", _MeanOverPositions(guided.channel_axis + 1), "mean over positions")
        _plan_linear(plan, hint, guided)
    elif guided.kind == "vector":
        raise PlanError(
            f"choosing a regressor: the hint (shape {hint.shape}) has positions, but the guided"
            f" output (shape {guided.shape}) has none",
            code="guided-without-positions",
            advice="Choose an earlier guided layer with --guided, or a later hint with --hint.",
            hint=list(hint.shape),
            guided=list(guided.shape),
        )
    elif hint.kind == guided.kind == "tokens" and hint.positions == guided.positions:
        _plan_linear(plan, hint, guided)
    else:
        _plan_map(plan, hint, guided)
    if is_rectified:
        plan.add("rectify", nn.ReLU(), "ReLU")


def _plan_linear(plan: _Plan, hint: _ValueAxes, guided: _ValueAxes) -> None:
    description = f"linear {guided.channels} -> {hint.channels}"
    plan.add("project", nn.Linear(guided.channels, hint.channels), description)


def _plan_map(plan: _Plan, hint: _ValueAxes, guided: _ValueAxes) -> None:
    """Folds to (N, C, *grid), pools, convolves, resizes, and restores the hint's order of axes."""
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


def _grids(guided: _ValueAxes, hint: _ValueAxes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The positions of both sides as grids of equal rank; two token sequences without such grids
    are treated as lines.
    """
    fit = len(guided.grid) == len(hint.grid) > 0
    if guided.kind == hint.kind == "tokens":
        return (guided.grid, hint.grid) if fit else (guided.positions, hint.positions)
    if not fit:
        raise PlanError(
            f"choosing a regressor: the guided output has positions {guided.positions}, which do"
            f" not form a grid like the positions {hint.positions} of the hint",
            code="grids-incompatible",
            advice="Choose layers of the same kind with --hint and --guided.",
            hint=list(hint.positions),
            guided=list(guided.positions),
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
    """From tokens or a channels-last map to (N, C, *grid)."""

    def __init__(self, channel_axis: int, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_axis, self.grid = channel_axis, grid

    def forward(self, values: Tensor) -> Tensor:
        values_NC = values.movedim(self.channel_axis, 1)
        return values_NC.reshape(values_NC.shape[:2] + self.grid)


class _FromMap(nn.Module):
    """From (N, C, *grid) to the positions and the channel axis of the hint."""

    def __init__(self, channel_axis: int, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_axis, self.positions = channel_axis, positions

    def forward(self, map_NC: Tensor) -> Tensor:
        values_NC = map_NC.reshape(map_NC.shape[:2] + self.positions)
        return values_NC.movedim(1, self.channel_axis)
