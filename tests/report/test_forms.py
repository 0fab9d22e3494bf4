"""The report as text, Markdown and HTML."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.report_runs import PLAN, finished_run, results, share, unfinished_run
from rich.console import Console

from fitcompress.report.run_report import Report

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

    VOID = frozenset({"meta", "br", "img"})

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
    allowed = re.compile(r"#[\w-]+|data:image/png;base64,[\w+/=]+")
    assert page.fetched
    assert [link for link in page.fetched if not allowed.fullmatch(link)] == []
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    assert re.findall(r"url\((?!#)|@import", report.render("html")) == []
    assert page.open == []


def test_no_two_parts_of_the_page_have_the_same_id(report: Report) -> None:
    ids = re.findall(r'\sid="([^"]+)"', report.render("html"))
    assert ids
    assert len(ids) == len(set(ids))


def test_the_page_shows_every_part_and_the_charts(report: Report) -> None:
    page = read_page(report)
    shown = " ".join(page.words)
    for words in (
        "89.4\N{NO-BREAK SPACE}%",
        "layer2.1",
        "student.int8.onnx",
        "Learning curves",
        "Stage 2: distillation",
        "Shirt \N{RIGHTWARDS ARROW} Coat: 23",
        "Calibration",
        'source = "resnet20"',
    ):
        assert words in shown
    # One chart for accuracy, one for the loss of each of four stages, disagreements, classes,
    # calibration, and the latency of two batch sizes.
    assert page.tags.count("svg") == 1 + 4 + 3 + 2
    assert page.tags.count("img") == 2


def test_without_pictures_their_table_is_shown(report: Report) -> None:
    for path in (report.path / "thumbnails").iterdir():
        path.unlink()
    page = read_page(report)
    assert "img" not in page.tags
    assert "KL, nats" in " ".join(page.words)


def test_of_many_classes_those_with_the_largest_loss_are_shown(tmp_path: Path) -> None:
    names = [f"class {k:02}" for k in range(30)]
    classes = [
        {"name": name, "teacher": share(180, 200), "student": share(180 - (7 * k) % 30, 200)}
        for k, name in enumerate(names)
    ]
    text = Report.load(finished_run(tmp_path, classes=classes)).render("md")
    shown = re.findall(r"class \d\d", text)
    assert len(shown) == 20
    assert shown == sorted(names, key=lambda name: -((7 * int(name[-2:])) % 30))[:20]
    assert "The 20 of 30 classes on which the student lost most." in text


def test_sections_that_need_labels_are_left_out_without_them(tmp_path: Path) -> None:
    none = {"accuracy": None, "calibration": None}
    changed = {name: {**results()[name], **none} for name in ("teacher", "student", "baseline")}
    unknown = {"teacher_right": None, "student_right": None}
    rows = [{**row, **unknown} for row in results()["disagreements"]]
    report = Report.load(
        finished_run(
            tmp_path, **changed, tests={"teacher_student": None}, classes=[], disagreements=rows
        )
    )
    for form in ("text", "md", "html"):
        rendered = report.render(form)
        assert "Class by class" not in rendered
        assert "Calibration" not in rendered
        assert "Teacher right" not in rendered
        assert "Disagreements with the teacher" in rendered


def test_outputs_without_classes_leave_out_all_predictions(tmp_path: Path) -> None:
    none = {"accuracy": None, "calibration": None}
    whole = results()
    changed = {name: {**whole[name], **none} for name in ("teacher", "student", "baseline")}
    kept = {key: whole[key] for key in ("stages", "data", "headline_facts")} | changed
    run = finished_run(tmp_path)
    run.write_json("results.json", kept)
    page = Report.load(run).render("html")
    assert "Learning curves" in page
    for title in ("Disagreements", "divergence", "Class by class", "Calibration"):
        assert title not in page


@pytest.mark.integration
def test_only_the_page_imports_matplotlib(tmp_path: Path) -> None:
    finished_run(tmp_path / "run")
    code = (
        "import sys; from fitcompress import Report\n"
        f"report = Report.load({str(tmp_path / 'run')!r})\n"
        "for form in ('text', 'json', 'md'): report.render(form)\n"
        "assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)\n"
        "report.render('html')\n"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_page_has_styles_for_dark_mode_phones_and_paper(report: Report) -> None:
    page = report.render("html")
    for rule in ("prefers-color-scheme: dark", "width=device-width", "@media print"):
        assert rule in page


def test_names_are_escaped(tmp_path: Path) -> None:
    run = unfinished_run(tmp_path / "run")
    bad = "<script>alert(1)</script>|`*_"
    run.write_json(
        "plan.json", {**PLAN, "notices": [bad], "frozen": [{"tensors": [bad], "reason": bad}]}
    )
    run.write_text("recipe.toml", f"[teacher]\nsource = '{bad}'\n")
    report = Report.load(run)
    assert "<script" not in report.render("html")
    outside_of_code = re.sub(r"```.*?```", "", report.render("md"), flags=re.DOTALL)
    assert "<script" not in outside_of_code.replace("\\<", "")
    assert bad in report.render("text")
