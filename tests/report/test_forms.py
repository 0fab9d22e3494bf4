"""The report as text, Markdown and HTML."""

from __future__ import annotations

import io
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report.runs import PLAN, finished_run, unfinished_run
from rich.console import Console

from fitcompress.report import Report

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def report(in_empty_folder: Path) -> Report:
    """A finished run at a path that is the same everywhere."""
    finished_run(Path("runs/example"))
    return Report.load("runs/example")


def check_golden(name: str, text: str, request: pytest.FixtureRequest) -> None:
    """Compare with the stored screen; `--regolden` stores it anew."""
    path = GOLDEN / name
    if request.config.getoption("--regolden", default=False):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("form", ["text", "md"])
def test_report_of_a_finished_run(
    report: Report, form: str, request: pytest.FixtureRequest
) -> None:
    check_golden(f"finished.{form}", report.render(form), request)


def test_report_of_an_unfinished_run(in_empty_folder: Path, request: pytest.FixtureRequest) -> None:
    unfinished_run(Path("runs/example"))
    check_golden("unfinished.text", Report.load("runs/example").render(), request)


def test_text_but_for_commands_fits_into_100_columns(report: Report) -> None:
    lines = report.render().splitlines()
    assert max(len(line) for line in lines if not line.startswith("  $")) <= 100


def test_rich_prints_a_report_at_any_width(report: Report) -> None:
    console = Console(width=60, file=io.StringIO())
    with console.capture() as captured:
        console.print(report)
    assert "Comparison" in captured.get()


class PageReader(HTMLParser):
    """What a page would fetch, the text it shows, and whether its tags close."""

    VOID = frozenset({"meta", "line", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read_page(report: Report) -> PageReader:
    reader = PageReader()
    reader.feed(report.render("html"))
    return reader


def test_the_page_fetches_nothing_and_runs_nothing(report: Report) -> None:
    page = read_page(report)
    assert page.fetched == []
    assert "script" not in page.tags
    assert "url(" not in report.render("html")
    assert page.open == []


def test_the_page_shows_every_part_and_the_curves(report: Report) -> None:
    page = read_page(report)
    shown = " ".join(page.words)
    for words in ("89.4 %", "layer2.1", "student.onnx", "Learning curves", "Stage 2: distillation"):
        assert words in shown
    # One chart for accuracy, one for the loss of each of four stages.
    assert page.tags.count("svg") == 5


def test_the_page_knows_dark_phones_and_paper(report: Report) -> None:
    page = report.render("html")
    for rule in ("prefers-color-scheme: dark", "width=device-width", "@media print"):
        assert rule in page


def test_names_from_outside_cannot_write_into_the_page(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    bad = "<script>alert(1)</script>|`*_"
    run.write_json(
        "plan.json", {**PLAN, "notices": [bad], "frozen": [{"tensors": [bad], "reason": bad}]}
    )
    report = Report.load(run)
    assert "<script" not in report.render("html")
    assert "<script" not in report.render("md").replace("\\<", "")
    assert bad in report.render("text")
