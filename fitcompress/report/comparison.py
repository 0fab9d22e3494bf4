"""Several runs side by side: the students' sizes, accuracy and speed, and what is shown to differ.

Knows no torch: the answers of a run are counts of right and wrong, and the tests are pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fitcompress.errors import RunError
from fitcompress.evaluation.significance import holm, paired_test
from fitcompress.formatting import bytes_text, integer_text, p_text, percent_text, points_text
from fitcompress.report.charts import Dots, Key, Line, Point
from fitcompress.report.document import NONE, Cell, Document, Section, Sentence, Table
from fitcompress.report.headline import SIGNIFICANT
from fitcompress.report.rendered import Rendered
from fitcompress.report.rows import list_measures
from fitcompress.report.run_report import Report
from fitcompress.rundir import RunDir

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Comparison", "right_answers"]


@dataclass(frozen=True)
class Comparison(Rendered):
    """Runs, and for each but the first a test of its student against the first one's."""

    reports: tuple[Report, ...]
    tests: tuple[dict[str, Any], ...]
    """As `significance.paired_test`, with `p_holm`; or why there is none as `reason`."""

    @classmethod
    def load(cls, paths: Sequence[Path | str]) -> Comparison:
        """The comparison of the runs in these directories, finished or not.

        Raises:
            RunError: fewer than two, one of them twice, or one is no run.
        """
        reports = tuple(Report.load(Path(path)) for path in paths)
        different = {report.path.resolve() for report in reports}
        if len(different) < max(2, len(reports)):
            given = " and ".join(f"'{report.path}'" for report in reports) or "none"
            raise RunError(
                f"comparing runs: expected two or more different ones, got {given}",
                advice="`fitcompress report RUN` shows one",
            )
        first, *others = reports
        return cls(reports, tuple(_with_holm([_tested(first, other) for other in others])))

    @property
    def names(self) -> tuple[str, ...]:
        """What the runs are called: their directories, with the path where two share a name."""
        shared = Counter(report.path.resolve().name for report in self.reports)
        return tuple(
            name if shared[name := report.path.resolve().name] == 1 else str(report.path)
            for report in self.reports
        )

    @property
    def html_path(self) -> Path:
        """Where its page lies when nobody says where: with the first run."""
        return RunDir(self.reports[0].path).path / "comparison.html"

    def to_dict(self) -> dict[str, Any]:
        """The comparison for scripts, ready for JSON."""
        runs = [
            {
                "name": name,
                "run": str(report.path),
                "is_finished": report.is_finished,
                "teacher_source": report.recipe.get("teacher", {}).get("source"),
                **{network: report.model(network) for network in ("teacher", "student")},
                "exports": [dict(record) for record in report.exports],
            }
            for name, report in zip(self.names, self.reports, strict=True)
        ]
        return {"runs": runs, "tests": [dict(test) for test in self.tests]}

    def document(self) -> Document:
        """The report in words, tables and charts."""
        return Document(
            title="fitcompress runs",
            name=", ".join(str(report.path) for report in self.reports),
            heading=", ".join(self.names),
            sentences=tuple(_sentences(self)),
            sections=tuple(part for part in _sections(self) if not part.is_empty),
        )


# --- tests -------------------------------------------------------------------------------------


def _tested(first: Report, other: Report) -> dict[str, Any]:
    """McNemar's test of the other run's student against the first one's, or why there is none."""
    digests = [report.results.get("data", {}).get("evaluation_digest") for report in (first, other)]
    if None in digests:
        return {"reason": "not known to be measured on the same images"}
    if digests[0] != digests[1]:
        return {"reason": "measured on other images"}
    one, two = right_answers(first), right_answers(other)
    if one is None or two is None or len(one) != len(two):
        return {"reason": "no labels, or no predictions"}
    return paired_test(int((one & ~two).sum()), int((two & ~one).sum()), len(one)).to_dict()


def right_answers(report: Report) -> npt.NDArray[np.bool_] | None:
    """Which evaluation images a run's student has right, in their order; None where unknown."""
    from safetensors.numpy import load_file  # and NumPy with it, which `--help` must not wait for

    path = RunDir(report.path).predictions_path
    if not path.is_file() or not (report.model("student") or {}).get("accuracy"):
        return None
    tensors = load_file(path)
    order = tensors["student.ids"].argsort()
    right: npt.NDArray[np.bool_] = (
        tensors["student.logits"].argmax(axis=1) == tensors["student.labels"]
    )
    return right[order]


def _with_holm(tests: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    known = [test for test in tests if "p_value" in test]
    adjusted = iter(holm([test["p_value"] for test in known]))
    return [{**test, "p_holm": next(adjusted)} if "p_value" in test else test for test in tests]


# --- words -------------------------------------------------------------------------------------


def _sentences(comparison: Comparison) -> list[Sentence]:
    first, *others = comparison.names
    said = [
        Sentence(f"The run {name} is unfinished; missing: {', '.join(report.missing)}.", True)
        for name, report in zip(comparison.names, comparison.reports, strict=True)
        if not report.is_finished
    ]
    for name, test in zip(others, comparison.tests, strict=True):
        said.append(Sentence(f"Accuracy of {name} against {first}: {_verdict(test)}."))
    return said


def _verdict(test: dict[str, Any]) -> str:
    if "reason" in test:
        return f"not tested ({test['reason']})"
    found = f"{_difference(test)}, McNemar {p_text(test['p_holm'])} after Holm"
    if test["p_holm"] > SIGNIFICANT or not test["difference"]:
        return f"a difference is not shown ({found})"
    return f"{'higher' if test['difference'] > 0 else 'lower'} ({found})"


def _difference(test: dict[str, Any]) -> str:
    interval = f"95 % interval {100 * test['low']:+.1f} to {100 * test['high']:+.1f}"
    return f"{points_text(test['difference'])}, {interval}"


def _sections(comparison: Comparison) -> tuple[Section, ...]:
    return _students(comparison), _tests(comparison), _settings(comparison)


def _students(comparison: Comparison) -> Section:
    students = [report.model("student") or {"latency": {}} for report in comparison.reports]
    rows = [(Cell("Teacher"), *(_teacher(report) for report in comparison.reports))]
    rows += [
        (measure.label, *(measure.value(student) for student in students))
        for measure in list_measures(students)
    ]
    rows.append((Cell("Exports"), *(_exports(report) for report in comparison.reports)))
    hardware = {_hardware(report) for report in comparison.reports}
    note = (
        "The times were measured on different hardware and say little about the students."
        if len(hardware) > 1
        else "The times are those of each run; only those of one run were measured in turns."
    )
    return Section("The students", note, Table(("", *comparison.names), tuple(rows)))


def _teacher(report: Report) -> Cell:
    accuracy = (report.model("teacher") or {}).get("accuracy")
    return Cell(report.teacher_name, percent_text(accuracy["top1"]) if accuracy else "")


def _hardware(report: Report) -> tuple[Any, ...]:
    return tuple(report.environment.get(key) for key in ("cpu", "gpu", "device", "threads"))


def _exports(report: Report) -> Cell:
    sizes = [bytes_text(record["size_bytes"]) for record in report.exports]
    return Cell(", ".join(record["format"] for record in report.exports) or NONE, ", ".join(sizes))


def _tests(comparison: Comparison) -> Section:
    first, *others = comparison.names
    rows = tuple(
        (
            Cell(name),
            Cell(points_text(test["difference"]), _difference(test).partition(", ")[2]),
            Cell(integer_text(test["only_second"]), f"of {integer_text(test['n'])}"),
            Cell(integer_text(test["only_first"])),
            Cell(p_text(test["p_value"]).removeprefix("p = ")),
            Cell(p_text(test["p_holm"]).removeprefix("p = ")),
        )
        for name, test in zip(others, comparison.tests, strict=True)
        if "p_value" in test
    )
    note = (
        "McNemar's exact test on the same images; Holm's correction for as many tests as there are."
        " One training run each: other seeds may differ."
    )
    columns = ("Run", f"Against {first}", "Only it right", f"Only {first}", "p", "p, Holm")
    title = f"Top-1 against {first}" if rows else "Top-1"
    chart = _accuracies(comparison)
    return Section(
        title, note if rows else "", Table(columns, rows), charts=(chart,) if chart.names else ()
    )


def _accuracies(comparison: Comparison) -> Dots:
    students = (report.model("student") or {} for report in comparison.reports)
    known = {
        name: accuracy
        for name, student in zip(comparison.names, students, strict=True)
        if (accuracy := student.get("accuracy"))
    }
    points = tuple(
        Point(
            found["top1"], 0, found["low"], found["high"], f"{name}: {percent_text(found['top1'])}"
        )
        for name, found in known.items()
    )
    return Dots("Top-1 of the students", tuple(known), (Line(Key("student", 2), points),))


def _settings(comparison: Comparison) -> Section:
    """The settings that are not the same in all runs."""
    flat = [_flat(report.recipe) for report in comparison.reports]
    names = dict.fromkeys(name for settings in flat for name in settings)
    rows = tuple(
        (Cell(name), *(Cell(_setting(settings, name)) for settings in flat))
        for name in names
        if name != "run.out" and len({_setting(settings, name) for settings in flat}) > 1
    )
    columns = ("Setting", *comparison.names)
    return Section("Where the recipes differ", table=Table(columns, rows, is_numeric=False))


def _setting(settings: dict[str, Any], name: str) -> str:
    """As it stands in a recipe."""
    value = settings.get(name, NONE)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _flat(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found
