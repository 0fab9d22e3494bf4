"""How a network wants its images. Lowest layer: standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["InputSpec", "Interface"]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images a network takes: float32 NCHW, (x / 255 - mean) / std per channel."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    crop_pct: float = 1.0
    """Share of the shorter side that the centre crop keeps at evaluation."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What one must know to use a network: its images, its classes, and what its output means."""

    input: InputSpec
    class_names: tuple[str, ...] = ()
    """In the order of the outputs; empty where unknown."""
    activation: str = ""
    """What the network ends in: "", "softmax", "log_softmax" or "sigmoid"."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where the network comes from: teacher, multipliers, fitcompress version."""
