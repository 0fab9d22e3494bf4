"""Charts as SVG: positions, the page's colors, and the same bytes every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import pytest

import fitcompress
from fitcompress.report.charts import Bars, Chart, Dots, Key, Line, Lines, Point, Strip, Strips
from fitcompress.report.drawing import draw_svg

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
TEACHER, STUDENT = Key("teacher", 1), Key("student", 2)


def point(x: float, value: float) -> Point:
    return Point(value, x, value - 0.02, value + 0.02, f"{x:g}: {value:g}")


CURVE = Line(TEACHER, tuple(point(x, y) for x, y in ((1, 0.1), (2, 0.5), (4, 0.9))))
INSIDE = Line(TEACHER, (point(0.3, 0.2), point(0.9, 0.95)))
DASHED = Line(Key("held out", 2, is_dashed=True), (point(1, 0.2), point(4, 0.3)))
CHARTS: dict[str, Chart] = {
    "lines": Lines("a < b", "epoch", "", (CURVE, DASHED)),
    "shares": Lines("shares", "epoch", "y & z", (CURVE,), is_share=True),
    "square": Lines("reliability", "confidence", "accuracy", (INSIDE,), True, is_square=True),
    "one point": Lines("one", "epoch", "", (Line(TEACHER, (point(1, 0.5),)),)),
    "strips": Strips("time", "ms", (Strip("PyTorch <1>", TEACHER, (1.0, 2.0, 90.0), 2.0, 3.0),)),
    "dots": Dots("classes", ("x" * 60, "<b>"), (Line(STUDENT, (point(0, 0.4), point(0, 0.6))),)),
    "bars": Bars("pairs", "images", ("a", "b"), ((TEACHER, (3, 1)), (STUDENT, (0, 2)))),
}


def drawn(chart: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(draw_svg(chart, "x"))


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(node.itertext()).strip() for node in root.iter(f"{SVG}text")]


def marks(root: ElementTree.Element) -> list[tuple[float, float, str]]:
    """Position and tooltip of each marker that has one."""
    return [
        (float(mark.attrib["x"]), float(mark.attrib["y"]), title.text or "")
        for mark in root.iter(f"{SVG}use")
        for title in mark.iter(f"{SVG}title")
    ]


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_chart_uses_the_colors_and_font_of_the_page(chart: Chart) -> None:
    svg = draw_svg(chart, "x")
    colors = re.findall(r"(?:fill|stroke): ([^;\"]+)", svg)
    assert colors
    assert all(c == "none" or re.fullmatch(r"var\(--[\w-]+, #\w{6}\)", c) for c in colors)
    root = ElementTree.fromstring(svg)
    assert "font-family" not in svg
    assert "DejaVu" not in svg
    assert root.attrib["aria-label"] == chart.title
    assert not {"width", "height"} & set(root.attrib), "the page says how large it is"
    assert not list(root.iter(f"{SVG}style")), "it would apply to the whole page"


@pytest.mark.parametrize("chart", CHARTS.values(), ids=CHARTS)
def test_a_chart_has_no_external_references(chart: Chart) -> None:
    root = drawn(chart)
    ids = {element.attrib["id"] for element in root.iter() if "id" in element.attrib}
    links = {use.attrib[f"{XLINK}href"] for use in root.iter(f"{SVG}use")}
    assert links == {f"#{name}" for name in ids}
    assert "url(" not in draw_svg(chart, "x")


def test_charts_on_one_page_share_no_id() -> None:
    def ids(name: str) -> set[str]:
        return set(re.findall(r' id="([^"]+)"', draw_svg(CHARTS["lines"], name)))

    assert ids("a")
    assert ids("a").isdisjoint(ids("b"))


@pytest.mark.integration
def test_the_same_chart_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from report.test_drawing import CHARTS, draw_svg\n"
        "print(*(draw_svg(chart, name) for name, chart in CHARTS.items()))"
    )
    paths = [Path(fitcompress.__file__).parents[1], Path(__file__).parents[1]]
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
            },
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert b"202" not in re.sub(rb"[\d.]*\.[\d]+", b"", runs[0]), "no date"


def test_the_users_matplotlib_settings_are_ignored_and_kept() -> None:
    expected = draw_svg(CHARTS["lines"], "x")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert draw_svg(CHARTS["lines"], "x") == expected
        assert mpl.rcParams["font.size"] == 30


def test_a_line_rises_where_its_values_rise() -> None:
    places = marks(drawn(CHARTS["shares"]))
    assert [hint for *_, hint in places] == ["1: 0.1", "2: 0.5", "4: 0.9"]
    (x1, y1, _), (x2, y2, _), (x3, y3, _) = places
    assert y1 > y2 > y3, "SVG counts downwards"
    # Epochs 1, 2, 4: the second step is twice as wide.
    assert (x3 - x2) / (x2 - x1) == pytest.approx(2, rel=1e-2)


def test_shares_are_in_percent_and_epochs_whole() -> None:
    shown = texts(drawn(CHARTS["shares"]))
    assert "y & z" in shown
    assert {"1", "2", "3", "4"} <= set(shown)
    assert any(text.endswith(" %") for text in shown)


def test_the_square_is_the_unit_square_with_its_diagonal() -> None:
    root = drawn(CHARTS["square"])
    assert {"0 %", "100 %"} <= set(texts(root))
    assert "stroke-dasharray" in draw_svg(CHARTS["square"], "x")


def test_calls_beyond_the_axis_are_counted() -> None:
    (label,) = (text for text in texts(drawn(CHARTS["strips"])) if "PyTorch" in text)
    assert label == "PyTorch <1> (1 more, to 90.0 ms)"


def test_long_names_beside_rows_are_cut_and_bars_show_their_counts() -> None:
    shown = texts(drawn(CHARTS["dots"]))
    assert "x" * 19 + "\N{HORIZONTAL ELLIPSIS}" in shown
    assert "<b>" in shown
    assert {"a: 3", "b: 3"} <= set(texts(drawn(CHARTS["bars"])))
