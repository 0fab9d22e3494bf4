"""Several runs side by side, with significance tests of the accuracies of their students.

Imports NumPy only where predictions are read, so that importing the module is fast.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcompress.errors import RunError
from fitcompress.evaluation.significance import SIGNIFICANT, holm, paired_test
from fitcompress.formatting import bytes_text, integer_text, p_text, percent_text, points_text
from fitcompress.records.json_record import Record
from fitcompress.records.measurements import PairedTest
from fitcompress.report.charts import Dots, Key, Line, Point
from fitcompress.report.document import NONE, Cell, Document, Section, Sentence, Table
from fitcompress.report.forms import render
from fitcompress.report.rows import list_measures
from fitcompress.report.run_report import Report
from fitcompress.report.text import build_view
from fitcompress.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Comparison", "NotTested", "right_answers"]


@dataclass(frozen=True, kw_only=True)
class NotTested(Record):
    """Why two students cannot be compared by a test."""

    reason: str


@dataclass(frozen=True)
class Comparison:
    """Runs, and a test of the student of each run but the first against the first one's."""

    reports: tuple[Report, ...]
    tests: tuple[PairedTest | NotTested, ...]

    @classmethod
    def load(cls, paths: Sequence[Path | str]) -> Comparison:
        """Reads runs, finished or not.

        Raises:
            RunError: fewer than two paths, the same path twice, or one that holds no run.
        """
        reports = tuple(Report.load(Path(path)) for path in paths)
        different = {report.path.resolve() for report in reports}
        if len(different) < max(2, len(reports)):
            given = " and ".join(f"'{report.path}'" for report in reports) or "none"
            raise RunError(
                f"comparing runs: expected two or more different runs, got {given}",
                code="too-few-runs",
                advice="Name another run, or show one with `fitcompress report RUN`.",
                runs=[str(report.path) for report in reports],
            )
        first, *others = reports
        return cls(reports, _with_holm([_tested(first, other) for other in others]))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the runs: their directories, or whole paths if two have the same name."""
        shared = Counter(report.path.resolve().name for report in self.reports)
        return tuple(
            name if shared[name := report.path.resolve().name] == 1 else str(report.path)
            for report in self.reports
        )

    @property
    def html_path(self) -> Path:
        """Default path of the HTML page, in the first run."""
        return RunDir(self.reports[0].path).path / "comparison.html"

    def to_dict(self) -> dict[str, Any]:
        """The comparison for scripts, ready for JSON."""
        runs = []
        for name, report in zip(self.names, self.reports, strict=True):
            written = report.to_dict()
            runs.append(
                {
                    "name": name,
                    "run": str(report.path),
                    "is_finished": report.is_finished,
                    "teacher_source": report.recipe.get("teacher", {}).get("source"),
                    **{key: written[key] for key in ("teacher", "student", "exports")},
                }
            )
        return {"runs": runs, "tests": [test.to_dict() for test in self.tests]}

    def document(self) -> Document:
        """The comparison as sentences, tables and charts."""
        return Document(
            title="fitcompress runs",
            name=", ".join(str(report.path) for report in self.reports),
            heading=", ".join(self.names),
            sentences=tuple(_sentences(self)),
            sections=tuple(part for part in _sections(self) if not part.is_empty),
        )

    def render(self, form: str = "text") -> str:
        """The comparison as "text" (100 columns), "json", "md" or "html" (one file).

        Raises:
            RunError: `form` is none of these.
        """
        return render(self, form)

    def __rich__(self) -> Any:
        return build_view(self.document())


# --- tests -------------------------------------------------------------------------------------


def _tested(first: Report, other: Report) -> PairedTest | NotTested:
    """McNemar's test of the other run's student against the first one's."""
    data = [report.results.data for report in (first, other)]
    digests = [facts.evaluation_digest if facts else None for facts in data]
    if None in digests:
        return NotTested(reason="perhaps not measured on the same images")
    if digests[0] != digests[1]:
        return NotTested(reason="measured on different images")
    one, two = right_answers(first), right_answers(other)
    if one is None or two is None or len(one) != len(two):
        return NotTested(reason="no labels, or no predictions")
    return paired_test(int((one & ~two).sum()), int((two & ~one).sum()), len(one))


def right_answers(report: Report) -> npt.NDArray[np.bool_] | None:
    """Whether the run's student is right, for each evaluation image in order; None if unknown."""
    from safetensors.numpy import load_file

    path = RunDir(report.path).predictions_path
    student = report.results.student
    if not path.is_file() or not student or not student.accuracy:
        return None
    tensors = load_file(path)
    order = tensors["student.ids"].argsort()
    right: npt.NDArray[np.bool_] = (
        tensors["student.logits"].argmax(axis=1) == tensors["student.labels"]
    )
    return right[order]


def _with_holm(tests: Sequence[PairedTest | NotTested]) -> tuple[PairedTest | NotTested, ...]:
    known = [test.p_value for test in tests if isinstance(test, PairedTest)]
    adjusted = iter(holm(known))
    return tuple(
        replace(test, p_holm=next(adjusted)) if isinstance(test, PairedTest) else test
        for test in tests
    )


# --- text --------------------------------------------------------------------------------------


def _sentences(comparison: Comparison) -> Iterator[Sentence]:
    first, *others = comparison.names
    for name, report in zip(comparison.names, comparison.reports, strict=True):
        if not report.is_finished:
            missing = ", ".join(report.missing)
            yield Sentence(f"The run {name} is unfinished. Missing: {missing}.", True)
    for name, test in zip(others, comparison.tests, strict=True):
        yield Sentence(f"Accuracy of {name} compared with {first}: {_verdict(test)}.")


def _verdict(test: PairedTest | NotTested) -> str:
    if isinstance(test, NotTested):
        return f"not tested ({test.reason})"
    p_value = _holm_of(test)
    found = (
        f"{points_text(test.difference)}, {_interval(test)},"
        f" McNemar {p_text(p_value)} after Holm's correction"
    )
    if p_value > SIGNIFICANT or not test.difference:
        return f"no significant difference ({found})"
    return f"{'higher' if test.difference > 0 else 'lower'} ({found})"


def _holm_of(test: PairedTest) -> float:
    assert test.p_holm is not None, "tests of a comparison are corrected"
    return test.p_holm


def _interval(test: PairedTest) -> str:
    return f"95 % interval {100 * test.low:+.1f} to {100 * test.high:+.1f}"


def _sections(comparison: Comparison) -> tuple[Section, ...]:
    return _students(comparison), _tests(comparison), _settings(comparison)


def _students(comparison: Comparison) -> Section:
    students = [report.model("student") for report in comparison.reports]
    rows = [(Cell("Teacher"), *map(_teacher, comparison.reports))]
    rows += [
        (
            measure.label,
            *(measure.value(student) if student else Cell(NONE) for student in students),
        )
        for measure in list_measures([student for student in students if student])
    ]
    rows.append((Cell("Exports"), *map(_exports, comparison.reports)))
    hardware = {_hardware(report) for report in comparison.reports}
    note = (
        "Latencies were measured on different hardware and cannot be compared."
        if len(hardware) > 1
        else "Latencies are those of each run; only networks of one run were timed in turns."
    )
    return Section("Students", note, Table(("", *comparison.names), tuple(rows)))


def _teacher(report: Report) -> Cell:
    teacher = report.results.teacher
    accuracy = teacher.accuracy if teacher else None
    return Cell(report.teacher_name, percent_text(accuracy.top1) if accuracy else "")


def _hardware(report: Report) -> tuple[Any, ...]:
    return tuple(report.environment.get(key) for key in ("cpu", "gpu", "device", "threads"))


def _exports(report: Report) -> Cell:
    sizes = [bytes_text(record.size_bytes) for record in report.exports]
    return Cell(", ".join(record.format for record in report.exports) or NONE, ", ".join(sizes))


def _tests(comparison: Comparison) -> Section:
    first, *others = comparison.names
    rows = tuple(
        (
            Cell(name),
            Cell(points_text(test.difference), _interval(test)),
            Cell(integer_text(test.only_second), f"of {integer_text(test.n)}"),
            Cell(integer_text(test.only_first)),
            Cell(p_text(test.p_value).removeprefix("p = ")),
            Cell(p_text(_holm_of(test)).removeprefix("p = ")),
        )
        for name, test in zip(others, comparison.tests, strict=True)
        if isinstance(test, PairedTest)
    )
    note = (
        "McNemar's exact test on the same images, and Holm's correction for the number of tests."
        " One training run each, so other seeds may differ."
    )
    columns = ("Run", f"vs {first}", "Only this run right", f"Only {first} right", "p", "p, Holm")
    title = f"Top-1 compared with {first}" if rows else "Top-1"
    chart = _accuracies(comparison)
    return Section(
        title, note if rows else "", Table(columns, rows), charts=(chart,) if chart.names else ()
    )


def _accuracies(comparison: Comparison) -> Dots:
    students = (report.results.student for report in comparison.reports)
    known = {
        name: student.accuracy
        for name, student in zip(comparison.names, students, strict=True)
        if student and student.accuracy
    }
    points = tuple(
        Point(found.top1, 0, found.low, found.high, f"{name}: {percent_text(found.top1)}")
        for name, found in known.items()
    )
    return Dots("Top-1 of the students", tuple(known), (Line(Key("student", 2), points),))


def _settings(comparison: Comparison) -> Section:
    """The settings that differ between the runs."""
    flat = [_flat(report.recipe) for report in comparison.reports]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = tuple(
        (Cell(name), *(Cell(_setting(settings, name)) for settings in flat))
        for name in names
        if name != "run.out" and len({_setting(settings, name) for settings in flat}) > 1
    )
    columns = ("Setting", *comparison.names)
    return Section("Recipe differences", table=Table(columns, rows, is_numeric=False))


def _setting(settings: Mapping[str, Any], name: str) -> str:
    """A value as written in a recipe."""
    value = settings.get(name, NONE)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings by dotted name."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
