"""Draws the costs of students of several depths and widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["draw_frontier"]


def draw_frontier(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws FLOPs and latency over parameters, one line for each depth.

    rows: the result of `fitcompress.plan_frontier`.
    path: its suffix is the format (.svg, .png, .pdf).
    """
    from matplotlib.figure import Figure  # takes a second; only this needs it
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    planes = figure.subplots(1, 2)
    words = {"flops": "FLOPs of one sample", "latency_ms": "ms for one sample, PyTorch"}
    for plane, (key, word) in zip(planes, words.items(), strict=True):
        for depth in dict.fromkeys(row["depth_mult"] for row in rows):
            own = [row for row in rows if row["depth_mult"] == depth]
            costs = [[row[name] for row in own] for name in ("params", key)]
            plane.plot(*costs, marker="o", markersize=3, label=f"depth-mult {depth:g}")
        plane.set(xscale="log", yscale="log", xlabel="parameters", ylabel=word)
        for axis in (plane.xaxis, plane.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 3)))
            axis.set_major_formatter(EngFormatter())
            axis.set_minor_formatter(NullFormatter())
        plane.grid(alpha=0.3)
    planes[0].legend(frameon=False)
    figure.savefig(path)
