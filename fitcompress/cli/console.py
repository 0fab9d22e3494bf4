"""Console output: results on stdout, notices and errors on stderr.

Without a terminal, lines are plain and 100 columns wide. Every view takes `as_json`, which prints
the same value as JSON. Views format values and compute none.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fitcompress.atomic import disk_errors, write_text
from fitcompress.formatting import (
    bytes_text,
    count_text,
    integer_text,
    percent_text,
    shape_text,
    speed_text,
)
from fitcompress.report.frontier_chart import draw_frontier

if TYPE_CHECKING:
    from fitcompress.report.ablation_report import Ablation
    from fitcompress.report.comparison import Comparison
    from fitcompress.report.run_report import Report

__all__ = [
    "ReportForm",
    "error_console",
    "output_console",
    "show_error",
    "show_eval",
    "show_exports",
    "show_frontier",
    "show_json",
    "show_layers",
    "show_model_folder",
    "show_notice",
    "show_plan",
    "show_report",
    "show_text",
]

ReportForm = Literal["text", "json", "md", "html"]

_WIDTH = 100
"""Columns without a terminal."""


def output_console() -> Console:
    """The console for results."""
    return _console(is_stderr=False)


def error_console() -> Console:
    """The console for progress, notices and errors."""
    return _console(is_stderr=True)


def _console(*, is_stderr: bool) -> Console:
    # Names such as "layers[0]" must not be read as markup, nor paths be highlighted.
    console = Console(stderr=is_stderr, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH
    return console


def show_text(text: str) -> None:
    """Print one line of results, unwrapped."""
    output_console().print(text, soft_wrap=True)


def show_json(value: object) -> None:
    """Print a value as JSON; NaN and infinities become null, unknown types text."""
    print(json.dumps(_json_ready(value), indent=2, ensure_ascii=False, default=str))


def show_error(message: str, advice: str = "", *, code: str = "") -> None:
    """Print an error as one red line, with its code if given, and its advice as another line."""
    console = error_console()
    title = f"error [{code}]" if code else "error"
    console.print(Text(f"{title}: {_one_line(message)}", style="bold red"), soft_wrap=True)
    if advice:
        console.print(Text(f"hint: {_one_line(advice)}"), soft_wrap=True)


def show_notice(message: str, console: Console | None = None) -> None:
    """Print a notice to `console`, by default stderr."""
    (console or error_console()).print(
        Text.assemble(("note: ", "yellow"), _one_line(message)), soft_wrap=True
    )


def show_plan(plan: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print a planned student: its costs, stages, hints and layers of unchanged width.

    Args:
        plan: the result of `fitcompress.plan`, with "teacher" and "student" (params, macs, flops,
            depth), "stages", "pairs", "learns_hints", "frozen" and "notices".
        as_json: print JSON instead of tables.
    """
    if as_json:
        show_json(plan)
        return
    console = output_console()
    console.print(_size_table(plan["teacher"], plan["student"]))
    console.print(_stage_table(plan["stages"]))
    title = "Hints" if plan["learns_hints"] else "Hints (not trained; enable with --hint-epochs)"
    console.print(_pair_table(title, plan["pairs"]) if plan["pairs"] else "no hint pairs")
    for place in plan["frozen"]:
        console.print(f"unchanged width: {_frozen_text(place)}", soft_wrap=True)
    for notice in plan["notices"]:
        show_notice(str(notice), console)


def show_frontier(
    rows: Sequence[Mapping[str, Any]], plot: Path | None = None, *, as_json: bool = False
) -> None:
    """Print the costs of students of several depths and widths, and plot them into a file.

    Raises:
        RunError: the file cannot be written.
    """
    if plot is not None:
        with disk_errors("plotting into", plot):
            draw_frontier(rows, plot)
    if as_json:
        show_json(rows)
        return
    columns = (">depth-mult", ">width-mult", ">parameters", ">FLOPs", ">layers", ">ms, batch 1")
    table = _table("Students", *columns)
    for row in rows:
        table.add_row(
            f"{row['depth_mult']:g}",
            f"{row['width_mult']:g}",
            count_text(row["params"]),
            count_text(row["flops"]),
            str(row["depth"]),
            f"{row['latency_ms']:.3g}",
        )
    output_console().print(table)


def show_layers(layers: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Print a teacher's layers in execution order.

    Args:
        layers: each with "name", "kind", "shape", "depth_share" and "candidate".
        as_json: print JSON instead of a table.
    """
    if as_json:
        show_json(layers)
        return
    table = _table("Layers", "layer", "kind", "shape", ">depth", "hint candidate")
    for layer in layers:
        share = layer["depth_share"]
        table.add_row(
            layer["name"],
            layer["kind"],
            _shape(layer["shape"]),
            "" if share is None else percent_text(share, 0),
            "yes" if layer["candidate"] else "",
        )
    output_console().print(table)


def show_exports(exports: Sequence[Mapping[str, Any]], *, as_json: bool = False) -> None:
    """Print exported files and their comparison with the student.

    Args:
        exports: each with "format", "path", "size_bytes", "max_abs_diff" and "top1_agreement",
            optionally with "accuracy", "latency" and "remark".
        as_json: print JSON instead of a table.
    """
    if as_json:
        show_json(exports)
        return
    columns = ("format", "file", ">size", ">difference", ">same top-1", ">top-1")
    table = _table("Exports", *columns)
    for export in exports:
        table.add_row(
            export["format"],
            str(export["path"]),
            bytes_text(export["size_bytes"]),
            f"{export['max_abs_diff']:.1e}",
            percent_text(export["top1_agreement"]),
            percent_text(export["accuracy"]["top1"]) if export.get("accuracy") else "",
        )
    output_console().print(table)
    for export in exports:
        if export.get("remark"):
            show_text(f"{export['format']}: {export['remark']}")
        if export.get("latency"):
            speeds = ", ".join(
                f"batch {batch}: {speed_text(own['speedup'], *own['speedup_range'])}"
                for batch, own in export["latency"].items()
            )
            show_text(f"{export['format']} compared with float32: {speeds}")


def show_eval(measured: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Print a model's accuracy.

    Args:
        measured: "accuracy" with top1, low, high (0..1) and n; other entries are printed by name.
        as_json: print JSON instead of text.
    """
    if as_json:
        show_json(measured)
        return
    show_text(f"accuracy: {_accuracy(measured.get('accuracy'))}")
    for name, value in measured.items():
        if name != "accuracy" and not isinstance(value, Mapping | list | tuple):
            show_text(f"{name.replace('_', ' ')}: {_cell(value)}")


def show_model_folder(path: Path, *, as_json: bool = False) -> None:
    """Print the path of a trained model."""
    if as_json:
        show_json({"path": str(path)})
    else:
        show_text(f"model folder: {path}")


def show_report(
    report: Report | Comparison | Ablation, *, form: ReportForm = "text", output: Path | None = None
) -> None:
    """Print a report, or write it to `output`; HTML is written to the run directory by default.

    Raises:
        RunError: the file cannot be written.
    """
    if form == "html" and output is None:
        output = report.html_path
    if output is not None:
        write_text(output, report.render(form))
        show_text(str(output))
    elif form == "text":
        output_console().print(report)
    else:
        print(report.render(form).rstrip("\n"))


def _size_table(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> Table:
    table = _table("Plan", "", ">teacher", ">student", ">ratio")
    names = {"params": "parameters", "macs": "MACs", "flops": "FLOPs", "depth": "depth"}
    for key, name in names.items():
        before, after = teacher[key], student[key]
        ratio = f"{after / before:.3g}" if before else ""
        table.add_row(name, count_text(before), count_text(after), ratio)
    return table


def _stage_table(stages: Sequence[Mapping[str, Any]]) -> Table:
    """Teacher -> student for each stage; a stage of only one network has no arrow."""
    table = _table("Stages", "student layers", ">blocks", "shape", ">parameters")
    for stage in stages:
        sides = [side for side in (stage["teacher"], stage["student"]) if side]
        ends = dict.fromkeys((sides[-1]["first"], sides[-1]["last"]))
        table.add_row(
            " to ".join(ends),
            " -> ".join(str(side["blocks"]) for side in sides),
            " -> ".join(shape_text(side["width"]) for side in sides),
            " -> ".join(count_text(side["params"]) for side in sides),
        )
    return table


def _pair_table(title: str, pairs: Sequence[Mapping[str, Any]]) -> Table:
    table = _table(title, "hint", "guided", "shapes", "regressor")
    for pair in pairs:
        shapes = f"{_shape(pair['hint_shape'])} <- {_shape(pair['guided_shape'])}"
        table.add_row(pair["hint"], pair["guided"], shapes, pair["regressor"])
    return table


def _frozen_text(place: Mapping[str, Any]) -> str:
    """Sizes that were not scaled, and why: "16 (no rule for x), in a.weight and 3 more"."""
    first, *others = place["tensors"] or [""]
    where = f", in {first}" if first else ""
    more = f" and {len(others)} more" if others else ""
    return f"{' x '.join(map(str, place['sizes']))} ({place['reason']}){where}{more}"


def _table(title: str, *columns: str) -> Table:
    """An empty table; columns whose names start with ">" are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        is_number = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if is_number else "left", overflow="fold"
        )
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _shape(sizes: Sequence[Any] | None) -> str:
    """Sizes as "256 x 14 x 14"; several outputs are separated by commas."""
    if sizes and isinstance(sizes[0], list | tuple):
        return ", ".join(map(shape_text, sizes))
    return shape_text(list(sizes or ()))


def _accuracy(accuracy: Mapping[str, Any] | None) -> str:
    if not accuracy:
        return "unknown (no labels)"
    low, high = accuracy["low"], accuracy["high"]
    interval = f"{percent_text(low)} to {percent_text(high)}"
    return f"{percent_text(accuracy['top1'])} ({interval}, n = {integer_text(accuracy['n'])})"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _json_ready(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _json_ready(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json_ready(part) for part in value]
    return str(value) if isinstance(value, Path) else value
