"""The chart of the costs of students."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")
from fitcompress.report.frontier_chart import draw_frontier

ROWS = [
    {"depth_mult": d, "params": 1e6 * w * d, "flops": 1e9 * w * w * d, "latency_ms": 5 * w * d}
    for d in (1.0, 2.0)
    for w in (0.1, 0.3, 1.0)
]


@pytest.mark.parametrize("suffix, head", [(".svg", b"<?xml"), (".png", b"\x89PNG")])
def test_the_suffix_is_the_format(tmp_path, suffix, head):
    draw_frontier(ROWS, tmp_path / f"f{suffix}")
    assert (tmp_path / f"f{suffix}").read_bytes().startswith(head)


def test_each_depth_is_a_line_over_its_parameters(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: kept.append(figure))
    draw_frontier(ROWS, tmp_path / "f.svg")
    flops, latency = kept[0].axes
    assert [line.get_label() for line in flops.lines] == ["depth-mult 1", "depth-mult 2"]
    assert list(flops.lines[1].get_xdata()) == pytest.approx([2e5, 6e5, 2e6])
    assert list(flops.lines[1].get_ydata()) == pytest.approx([2e7, 1.8e8, 2e9])
    assert list(latency.lines[0].get_ydata()) == pytest.approx([0.5, 1.5, 5])
